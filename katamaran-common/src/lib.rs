//! Layouts and packet logic shared by user space and eBPF.
#![no_std]
