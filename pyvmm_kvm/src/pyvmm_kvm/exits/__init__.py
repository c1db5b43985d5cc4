"""Why a vCPU came back from the guest: one class per exit reason."""
