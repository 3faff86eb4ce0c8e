//! Whether packets for an address end at the source node, or pass it on any way.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use crate::migrate::conntrack::view::addresses_that_matter;
use crate::migrate::conntrack::wire::MOST;
use crate::migrate::error::chain;
use crate::net::link::LinkKind;
use crate::net::route::Route;
use crate::net::ways::Ways;
use crate::net::{NetNs, Netlink};

use crate::conntrack::Entry;

/// What is known of addresses.
#[derive(Debug)]
pub(super) struct Places {
    netlink: Netlink,
    /// The devices towards the destination.
    underlays: Vec<u32>,
    ways: Option<Ways>,
    known: HashMap<IpAddr, bool>,
    /// Whether a device leads to what is on this node.
    virtual_devices: HashMap<u32, bool>,
}

impl Places {
    pub(super) fn open(
        netns: &NetNs,
        netlink: Netlink,
        underlays: Vec<u32>,
    ) -> Result<Self, String> {
        let ways = netns.run(Ways::open).map_err(|error| chain(&error))?;
        Ok(Self {
            netlink,
            underlays,
            ways: Some(ways.map_err(|error| chain(&error))?),
            known: HashMap::new(),
            virtual_devices: HashMap::new(),
        })
    }

    /// What was found; elsewhere, where nothing was.
    pub(super) fn at_source(&self, address: IpAddr) -> bool {
        self.known.get(&address).copied().unwrap_or(false)
    }

    /// Finds the addresses that the translation of these entries is about, as far as they are not known.
    pub(super) async fn find(&mut self, entries: &[Entry], vm: &[IpAddr]) -> Result<(), String> {
        if self.known.len() > 2 * MOST {
            self.known.clear();
        }
        let matter = entries
            .iter()
            .flat_map(|entry| addresses_that_matter(entry, vm));
        let unknown: HashSet<IpAddr> = matter
            .filter(|address| !self.known.contains_key(address))
            .collect();
        let unknown: Vec<IpAddr> = unknown.into_iter().collect();
        let Some(mut ways) = self.ways.take_if(|_| !unknown.is_empty()) else {
            return Ok(());
        };
        let looking = tokio::task::spawn_blocking(move || {
            let routes = ways.to(&unknown);
            (ways, unknown, routes)
        });
        let (ways, unknown, routes) = looking.await.map_err(|error| error.to_string())?;
        self.ways = Some(ways);
        for (address, route) in unknown.into_iter().zip(routes.map_err(|e| chain(&e))?) {
            // What no route leads to (a service's address) is elsewhere.
            let here = match route {
                Some(route) => self.ends_here(&route).await,
                None => false,
            };
            self.known.insert(address, here);
        }
        Ok(())
    }

    /// It leads to this node, or to the link of a virtual device other than the one to the destination: to a
    /// container or another VM of this node.
    async fn ends_here(&mut self, route: &Route) -> bool {
        if route.local {
            return true;
        }
        if route.gateway.is_some() || self.underlays.contains(&route.device) {
            return false;
        }
        if let Some(known) = self.virtual_devices.get(&route.device) {
            return *known;
        }
        let link = self.netlink.link_by_index(route.device).await;
        let virtual_device = link.is_ok_and(|link| {
            matches!(link.kind, LinkKind::Veth | LinkKind::Tun | LinkKind::Bridge)
        });
        self.virtual_devices.insert(route.device, virtual_device);
        virtual_device
    }
}
