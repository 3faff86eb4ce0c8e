//! What the destination has to know of a connection that the source tracks. See the table in [`super`].

use std::net::IpAddr;

use crate::conntrack::Entry;
use crate::conntrack::entry::status;

/// An entry as the destination is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) entry: Entry,
    /// The source goes on translating this connection.
    pub(crate) source_translates: bool,
    /// It works only as long as the source redirects.
    pub(crate) bound_to_source: bool,
}

/// The addresses of a connection of the VM of which it matters whether the source node has them, or leads to
/// them alone.
pub(crate) fn addresses_that_matter(entry: &Entry, vm: &[IpAddr]) -> Vec<IpAddr> {
    if !entry.is_translated() || !entry.concerns(vm) {
        return Vec::new();
    }
    let mut addresses = vec![
        entry.original.source,
        entry.original.destination,
        entry.reply.source,
        entry.reply.destination,
    ];
    addresses.retain(|address| !vm.contains(address));
    addresses
}

/// What the destination is told of an entry; `None` if it is not the VM's. `at_source` tells whether packets for
/// an address end at the source node, or pass it on any way.
pub(crate) fn view(
    entry: Entry,
    vm: &[IpAddr],
    at_source: impl Fn(IpAddr) -> bool,
) -> Option<View> {
    if !entry.concerns(vm) {
        return None;
    }
    let outside = |address: IpAddr| !vm.contains(&address) && at_source(address);
    let answers_to_source = outside(entry.reply.destination);
    let vm_answers = vm.contains(&entry.reply.source);
    if entry.is_translated() && vm_answers && answers_to_source {
        return Some(View {
            entry: entry.behind_translation(),
            source_translates: true,
            bound_to_source: false,
        });
    }
    let address_of_source = match (entry.status & status::DST_NAT != 0, vm_answers) {
        // A node port: clients send to the source.
        (true, true) => outside(entry.original.destination),
        // The VM's way to a service, whose backend is behind the source.
        (true, false) => outside(entry.reply.source),
        (false, _) => false,
    };
    let masqueraded = entry.status & status::SRC_NAT != 0 && answers_to_source;
    Some(View {
        bound_to_source: entry.is_translated() && (address_of_source || masqueraded),
        source_translates: false,
        entry,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conntrack::entry::{Transport, Tuple};

    const VM: &str = "10.244.0.5";
    const CLIENT: &str = "192.0.2.9";
    const SERVICE: &str = "10.96.0.10";
    /// The source node, and a container behind it.
    const NODE: &str = "10.0.1.2";
    const NEIGHBOUR: &str = "10.244.0.77";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn tuple(source: &str, destination: &str) -> Tuple {
        Tuple {
            source: ip(source),
            destination: ip(destination),
            protocol: 6,
            transport: Transport::Ports {
                source: 1,
                destination: 2,
            },
            zone: None,
        }
    }

    fn entry(original: (&str, &str), reply: (&str, &str), status: u32) -> Entry {
        Entry {
            original: tuple(original.0, original.1),
            reply: tuple(reply.0, reply.1),
            zone: 0,
            status: status | status::CONFIRMED,
            timeout: 100,
            mark: 0,
            labels: None,
            tcp: None,
            sctp: None,
            helper: None,
            shifts: [None; 2],
            syn_proxy: None,
        }
    }

    fn seen(entry: &Entry) -> View {
        let at_source = |address| [ip(NODE), ip(NEIGHBOUR)].contains(&address);
        view(entry.clone(), &[ip(VM)], at_source).unwrap()
    }

    #[track_caller]
    fn assert_carried_whole(entry: &Entry, bound_to_source: bool) {
        let expected = View {
            entry: entry.clone(),
            source_translates: false,
            bound_to_source,
        };
        assert_eq!(seen(entry), expected);
    }

    #[test]
    fn what_nobody_translates_is_carried_as_it_is() {
        assert_carried_whole(&entry((CLIENT, VM), (VM, CLIENT), 0), false);
        assert_carried_whole(&entry((VM, CLIENT), (CLIENT, VM), 0), false);
        assert_carried_whole(&entry((NEIGHBOUR, VM), (VM, NEIGHBOUR), 0), false);
    }

    #[test]
    fn a_service_whose_clients_are_elsewhere_moves_to_the_destination() {
        let e = entry((CLIENT, SERVICE), (VM, CLIENT), status::DST_NAT);
        assert_carried_whole(&e, false);
    }

    #[test]
    fn a_service_whose_client_is_behind_the_source_stays_there() {
        let e = entry((NEIGHBOUR, SERVICE), (VM, NEIGHBOUR), status::DST_NAT);
        let seen = seen(&e);
        assert!(seen.source_translates && !seen.bound_to_source);
        assert_eq!(seen.entry.original.destination, ip(VM));
        assert_eq!(seen.entry.original.source, ip(NEIGHBOUR));
        assert!(!seen.entry.is_translated());
    }

    #[test]
    fn a_node_port_that_hides_its_clients_stays_at_the_source() {
        let both = status::DST_NAT | status::SRC_NAT;
        let seen = seen(&entry((CLIENT, NODE), (VM, NODE), both));
        assert!(seen.source_translates && !seen.bound_to_source);
        assert_eq!(seen.entry.original.source, ip(NODE));
    }

    #[test]
    fn a_node_port_that_shows_its_clients_lives_as_long_as_the_redirect() {
        let e = entry((CLIENT, NODE), (VM, CLIENT), status::DST_NAT);
        assert_carried_whole(&e, true);
    }

    #[test]
    fn a_masqueraded_connection_of_the_vm_lives_as_long_as_the_redirect() {
        let e = entry((VM, CLIENT), (CLIENT, NODE), status::SRC_NAT);
        assert_carried_whole(&e, true);
        // An address that is not the source node's own can move.
        let e = entry((VM, CLIENT), (CLIENT, SERVICE), status::SRC_NAT);
        assert_carried_whole(&e, false);
    }

    #[test]
    fn the_vms_way_to_a_service_moves_with_it() {
        let e = entry((VM, SERVICE), (CLIENT, VM), status::DST_NAT);
        assert_carried_whole(&e, false);
        let e = entry((VM, SERVICE), (NEIGHBOUR, VM), status::DST_NAT);
        assert_carried_whole(&e, true);
    }

    #[test]
    fn connections_of_others_are_not_touched() {
        let e = entry((CLIENT, SERVICE), (NEIGHBOUR, CLIENT), status::DST_NAT);
        assert_eq!(view(e.clone(), &[ip(VM)], |_| true), None);
        assert!(addresses_that_matter(&e, &[ip(VM)]).is_empty());
    }

    #[test]
    fn only_translated_connections_ask_where_an_address_is() {
        let vm = [ip(VM)];
        assert!(addresses_that_matter(&entry((CLIENT, VM), (VM, CLIENT), 0), &vm).is_empty());
        let e = entry((CLIENT, SERVICE), (VM, CLIENT), status::DST_NAT);
        assert_eq!(
            addresses_that_matter(&e, &vm),
            [ip(CLIENT), ip(SERVICE), ip(CLIENT)]
        );
    }
}
