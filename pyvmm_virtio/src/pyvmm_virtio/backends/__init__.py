"""What devices stand on: files, servers and memory for disks; taps, sockets and passt for networks; and so on.

Each module has one kind of back end; the devices take any object that behaves like one (`block.BlockBackend`,
`net.NetBackend`, `port.PortBackend`), and so do tests.
"""
