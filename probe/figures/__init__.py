"""The frame of every figure: one look, pages for a browser, and pictures for print."""
