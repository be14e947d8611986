"""The command line: one module for each verb (``dataseg <verb>``)."""
