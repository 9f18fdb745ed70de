"""What lies in a bundle beside pages and tables: the model's files, parameters and low-rank parts."""
