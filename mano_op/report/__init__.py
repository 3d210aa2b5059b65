"""The report of a resolution transfer, with pictures."""

from mano_op.report.write import FILES as FILES
from mano_op.report.write import check_report_folder as check_report_folder
from mano_op.report.write import write_report as write_report
