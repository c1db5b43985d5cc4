"""The numbers that a virtio driver and its device share, one module for each subject, named as in Linux's headers."""
