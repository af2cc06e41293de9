"""Work on several processes, threads or ranks; their number changes no byte."""
