"""What is kept on disk and shown: records, journals, atomic files, provenance, figures' style."""
