"""The signed endpoints by what they are about; each module holds one `Feature`."""
