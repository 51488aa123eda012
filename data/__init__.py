"""CSV files, splits and the cache of decoded photos: between the data set on disk and training."""
