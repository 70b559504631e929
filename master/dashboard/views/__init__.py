"""The values that each page of the dashboard shows. No HTTP here."""
