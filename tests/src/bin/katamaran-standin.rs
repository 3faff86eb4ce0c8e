//! What the lab starts in place of QEMU where a real guest would be too slow.

fn main() -> anyhow::Result<()> {
    katamaran_tests::standin::run(std::env::args_os().skip(1))
}
