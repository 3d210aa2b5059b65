"""Published formats into a store; what they do not say of their grids has to be given."""

from mano_op.data.importers.fno_mat import import_fno_mat as import_fno_mat
from mano_op.data.importers.netcdf import import_netcdf as import_netcdf
from mano_op.data.importers.neuralop import import_neuralop_pt as import_neuralop_pt
from mano_op.data.importers.pdebench import import_pdebench as import_pdebench
from mano_op.data.importers.the_well import import_the_well as import_the_well
