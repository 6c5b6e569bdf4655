"""Messages and stubs generated from protos/siserve/v1; never edited by hand."""
