"""What all pages for the browser share: style, charts, and how a page is put together."""
