//! The client's streams.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::result::ClientResult;
use super::stage::{TRAFFIC_DEADLINE, TrafficSpec};
use crate::lab::{GUEST_V4, GUEST_V6, Lab, SERVICE_PORT, SERVICE_V4, SERVICE_V6};
use crate::traffic::{AckCollector, Sent, TcpLoad, TcpTraffic, UdpLoad, UdpTraffic, now_ns};

/// The streams at work.
#[derive(Debug)]
pub struct Client {
    udp_v4: Option<UdpTraffic>,
    udp_v6: Option<UdpTraffic>,
    tcp_v4: Option<TcpTraffic>,
    tcp_v6: Option<TcpTraffic>,
    udp_service: Option<UdpTraffic>,
    udp_second: [Option<UdpTraffic>; 2],
    tcp_service: Option<TcpTraffic>,
    tcp_service_v6: Option<TcpTraffic>,
    /// What V reports of its writes.
    pub(super) acks: Option<AckCollector>,
    calm_ns: Option<(u64, u64)>,
}

impl Client {
    /// Starts the streams from the lab's client.
    ///
    /// # Errors
    ///
    /// When a socket can't be had or a connection can't be made.
    pub fn start(lab: &Lab, spec: &TrafficSpec) -> Result<Self> {
        let netns = &lab.network().client;
        let udp = |load: UdpLoad| -> Result<Option<UdpTraffic>> {
            let load = UdpLoad {
                size: spec.size,
                mark: spec.mark,
                ..load
            };
            (load.rate > 0)
                .then(|| UdpTraffic::start(netns, load))
                .transpose()
        };
        let tcp = |load: TcpLoad| -> Result<Option<TcpTraffic>> {
            load.bytes_per_second
                .is_some()
                .then(|| TcpTraffic::start(netns, load))
                .transpose()
        };
        Ok(Self {
            tcp_v4: tcp(TcpLoad::new(GUEST_V4, spec.tcp_v4))?,
            tcp_v6: tcp(TcpLoad::new(GUEST_V6, spec.tcp_v6))?,
            tcp_service: tcp(TcpLoad {
                target: (SERVICE_V4, SERVICE_PORT).into(),
                ..TcpLoad::new(SERVICE_V4, spec.tcp_service)
            })?,
            tcp_service_v6: tcp(TcpLoad {
                target: (SERVICE_V6, SERVICE_PORT).into(),
                ..TcpLoad::new(SERVICE_V6, spec.tcp_service)
            })?,
            udp_service: udp(UdpLoad {
                target: (SERVICE_V4, SERVICE_PORT).into(),
                ..UdpLoad::new(SERVICE_V4, spec.pps_service)
            })?,
            udp_second: {
                let [v4, v6] = lab.config().wiring.second().addresses();
                [
                    udp(UdpLoad::new(v4, spec.pps_second))?,
                    udp(UdpLoad::new(v6, spec.pps_second))?,
                ]
            },
            udp_v4: udp(UdpLoad::new(GUEST_V4, spec.pps_v4))?,
            udp_v6: udp(UdpLoad::new(GUEST_V6, spec.pps_v6))?,
            acks: None,
            calm_ns: None,
        })
    }

    /// Waits until V's disks have acknowledged `count` more records each.
    ///
    /// # Errors
    ///
    /// When one has not in 10 s.
    pub fn wait_for_writes(&self, count: u64) -> Result<()> {
        let acks = self.acks.as_ref().context("V writes nothing")?;
        acks.wait_for_more(count, Instant::now() + TRAFFIC_DEADLINE)
    }

    pub(super) fn udp(&self) -> impl Iterator<Item = &UdpTraffic> {
        self.udp_v4
            .iter()
            .chain(&self.udp_v6)
            .chain(&self.udp_service)
            .chain(self.udp_second.iter().flatten())
    }

    /// Has UDP packets marked from now on, or no more.
    pub fn set_marking(&self, on: bool) {
        for udp in self.udp() {
            udp.set_marking(on);
        }
    }

    /// What counts the packets of the first UDP stream.
    #[must_use]
    pub fn sent(&self) -> Option<Sent> {
        self.udp().next().map(UdpTraffic::sent_so_far)
    }

    /// Lets the traffic run for a while with nothing else going on, and notes when that was.
    pub fn stay_calm(&mut self, calm: Duration) {
        let began_ns = now_ns();
        std::thread::sleep(calm);
        self.calm_ns = (!calm.is_zero()).then(|| (began_ns, now_ns()));
    }

    /// Waits until every UDP stream has had `count` more packets back.
    ///
    /// # Errors
    ///
    /// When one has not in 10 s.
    pub fn wait_for_more(&self, count: u64) -> Result<()> {
        let deadline = Instant::now() + TRAFFIC_DEADLINE;
        for udp in self.udp() {
            udp.wait_for_more(count, deadline)?;
        }
        Ok(())
    }

    /// Stops the streams and settles their accounts.
    ///
    /// # Errors
    ///
    /// When a socket failed on the way.
    pub fn stop(self) -> Result<ClientResult> {
        let [second_v4, second_v6] = self.udp_second;
        Ok(ClientResult {
            udp_second_v4: second_v4.map(UdpTraffic::stop).transpose()?,
            udp_second_v6: second_v6.map(UdpTraffic::stop).transpose()?,
            udp_v4: self.udp_v4.map(UdpTraffic::stop).transpose()?,
            udp_v6: self.udp_v6.map(UdpTraffic::stop).transpose()?,
            tcp_v4: self.tcp_v4.map(TcpTraffic::stop).transpose()?,
            tcp_v6: self.tcp_v6.map(TcpTraffic::stop).transpose()?,
            udp_service: self.udp_service.map(UdpTraffic::stop).transpose()?,
            tcp_service: self.tcp_service.map(TcpTraffic::stop).transpose()?,
            tcp_service_v6: self.tcp_service_v6.map(TcpTraffic::stop).transpose()?,
            disk: None,
            calm_ns: self.calm_ns,
        })
    }
}
