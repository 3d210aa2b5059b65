"""The names of the package: what `mano_op/report/__init__.py` imports on first use."""

from .folder import FILES as FILES
from .folder import check_report_folder as check_report_folder
from .page import write_report as write_report
