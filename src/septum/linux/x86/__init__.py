"""The architecture side of TDX in the host: SEAMCALL wrappers, key ids, Dynamic PAMT."""
