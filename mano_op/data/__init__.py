"""Stores of labelled fields, batches of them, and their statistics.

=============  ===================================================================
`store`        fields on disk; `layout`, `schema`, `validate` and `moments` are
               its parts, `jobs` fills one chunk by chunk
`write`        xarray data sets into a store; `coordinates` makes grids of theirs
`options`      options of whatever makes a store
`importers`    files of other formats into a store
`coarsen`      a store with coarser resolutions out of another
`dataset`      samples in neuraloperator's form; `channels` says which is which
`well`         samples that The Well's own package reads
`loaders`      batches of them, by `sampler` where resolutions are mixed
`processor`    physical units to what a network likes, and back; `transforms`
`info`         a store in words
`check`        what is wrong with a store, in words
=============  ===================================================================
"""
