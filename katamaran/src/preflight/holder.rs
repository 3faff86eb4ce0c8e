//! Who listens on a port of this network namespace, by `/proc`.

use std::fs;
use std::path::Path;

/// The state LISTEN in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// `name (process N)` of the one that listens there, as far as its process can be looked into.
pub(super) fn of_port(port: u16) -> Option<String> {
    let tables = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];
    let inode = tables
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .find_map(|table| listener(&table, port))?;
    let socket = format!("socket:[{inode}]");
    let pid = fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .find(|pid| has_open(pid, Path::new(&socket)))?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(format!("{} (process {pid})", name.trim_end()))
}

/// The inode of the socket that listens on the port. Columns: number, local address and port, remote ones, state, queues,
/// timer, retransmits, user, timeout, inode.
fn listener(table: &str, port: u16) -> Option<u64> {
    let end = format!(":{port:04X}");
    table.lines().skip(1).find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let matches = columns.get(1)?.ends_with(&end) && *columns.get(3)? == LISTEN;
        matches.then(|| columns.get(9)?.parse().ok()).flatten()
    })
}

fn has_open(pid: &str, what: &Path) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    descriptors
        .flatten()
        .any(|descriptor| fs::read_link(descriptor.path()).is_ok_and(|target| target == what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listener_is_told_from_a_connection_of_the_same_port() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                     0: 0100007F:1D3A 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 111 1 0\n   \
                     1: 00000000:1D3A 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 222 1 0\n";
        assert_eq!(listener(table, 7482), Some(222));
        assert_eq!(listener(table, 7483), None);
    }

    #[test]
    fn this_process_is_found_by_its_port() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let holder = of_port(listener.local_addr().unwrap().port()).unwrap();
        assert!(
            holder.ends_with(&format!("(process {})", std::process::id())),
            "{holder}"
        );
    }
}
