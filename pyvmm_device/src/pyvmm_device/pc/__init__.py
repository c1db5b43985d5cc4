"""The old devices of a PC: serial port, clock, keyboard controller, timers and interrupt controllers."""
