"""The two faces of probe: the command line (`probe.app.cli`) and the pages of the app. They draw and print only."""
