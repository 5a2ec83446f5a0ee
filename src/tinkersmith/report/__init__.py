"""A run -> report.html: one page that shows what was trained, and how well."""
