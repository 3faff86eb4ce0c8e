//! Runs as init of the lab's guest: brings the network up, echoes, and makes load on request.
//!
//! | port | protocol | what |
//! |---|---|---|
//! | 7 | UDP, TCP | echo, byte for byte |
//! | 8 | UDP | control: one command per datagram, one line of reply |
//!
//! Everything it needs to know comes from the kernel command line:
//!
//! | word | meaning |
//! |---|---|
//! | `ktg.ip=A[,A]` | addresses of eth0, IPv4 and IPv6, without prefix (always /32 and /128) |
//! | `ktg.ip1=A[,A]` | addresses of eth1, where there is one; what is sent from them leaves through eth0 |
//! | `ktg.mtu=N` | MTU of both |
//! | `ktg.dirty=RATE:SIZE` | dirty memory from the start: MB/s over SIZE MiB |
//!
//! The gateways are the ones that routed container networks use: 169.254.1.1 and fe80::1, on link.

mod control;
mod dirty;
mod disk;
mod echo;
#[allow(
    dead_code,
    reason = "the guest only writes records, the lab only reads them"
)]
mod record;
mod setup;

use std::io;

fn main() {
    if let Err(err) = run() {
        setup::console(&format!("katamaran-guest: {err}"));
    }
    // Init must not return: that is a kernel panic, and here it would hide the message above.
    loop {
        std::thread::park();
    }
}

fn run() -> io::Result<()> {
    let boot = setup::prepare()?;
    let dirtier = dirty::Dirtier::start();
    if let Some((rate, size)) = boot.dirty {
        dirtier.set(rate, size);
    }
    let disk = disk::Disk::default();
    let counters = echo::start(&boot.echo_addresses())?;
    setup::console("katamaran-guest: ready");
    control::serve(&dirtier, &disk, &counters)
}
