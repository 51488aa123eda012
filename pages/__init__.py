"""Reports: the numbers and arrays of test.py and train.py in, HTML pages and pictures out."""
