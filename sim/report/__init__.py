"""The report of a run: one offline page, tables and a Perfetto trace."""
