#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| netprobe::fuzzing::run("netlink", bytes));
