"""What a run found, for people: tables in the terminal, one offline HTML page. Imports nothing heavy."""
