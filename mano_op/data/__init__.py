"""The way of the data: stores of labelled fields, batches of them, and their statistics.

=============  ===================================================================
`store`        fields on disk; `layout`, `schema`, `chunking`, `values` and
               `moments` are its parts
`fields`       xarray data sets into a store
`importers`    files of other formats into a store
`dataset`      samples and loaders in neuraloperator's form
`processor`    physical units to what a network likes, and back
`describe`     a store in words
=============  ===================================================================
"""
