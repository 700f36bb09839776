"""Adapters: one file per way to learn a task on a frozen backbone; each `build` returns one."""
