"""Data sets in shards: WebDataset's tar files and Parquet, on this machine, a web server or a bucket."""
