//! The VM's state, and what may change it.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::arguments::Arguments;
use super::echo::Guest;
use super::nic;
use super::ram::Ram;

/// A parameter that QEMU has not: stop the VM, to switch over, as soon as the stream takes nothing for so many ms.
pub(crate) const STOP_WHEN_HELD: &str = "x-stop-when-held";

/// A mutex that a thread which takes it again and again does not keep all others out of.
#[derive(Debug)]
struct Turns<T> {
    /// Held by who is next.
    next: Mutex<()>,
    value: Mutex<T>,
}

impl<T> Turns<T> {
    fn new(value: T) -> Self {
        Self {
            next: Mutex::default(),
            value: Mutex::new(value),
        }
    }

    fn lock(&self) -> MutexGuard<'_, T> {
        let _next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everything, shared by all threads.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) tap: File,
    pub(super) memory: u64,
    /// QEMU's big lock, as far as the monitors and the network card wait for it. Taken before the state.
    main_loop: Turns<()>,
    state: Turns<State>,
    /// Something in the state has changed.
    pub(super) changed: Condvar,
    listeners: Mutex<Vec<UnixStream>>,
}

#[derive(Debug)]
pub(super) struct State {
    /// QEMU's run state.
    pub(super) run: &'static str,
    /// Whether an incoming VM runs when it has arrived.
    pub(super) autostart: bool,
    pub(super) guest: Guest,
    pub(super) ram: Ram,
    /// The tap's frames have the header of a guest that has a driver.
    pub(super) header_of_guest: bool,
    /// What a VM that does not run has taken out of its tap.
    pub(super) swallowed: Option<Vec<u8>>,
    pub(super) migration: Migration,
    pub(super) capabilities: Map<String, Value>,
    pub(super) parameters: Map<String, Value>,
}

/// What `query-migrate` tells.
#[derive(Debug, Default)]
pub(super) struct Migration {
    pub(super) status: Option<&'static str>,
    pub(super) error: Option<String>,
    pub(super) transferred: u64,
    pub(super) remaining: u64,
    pub(super) syncs: u64,
    pub(super) downtime_ms: Option<u64>,
    pub(super) cancelled: bool,
    /// `migrate-continue` has come.
    pub(super) go_on: bool,
    /// To be cut when it is cancelled.
    pub(super) stream: Option<UnixStream>,
}

impl State {
    pub(super) fn running(&self) -> bool {
        self.run == "running"
    }

    pub(super) fn capability(&self, name: &str) -> bool {
        self.capabilities.get(name) == Some(&Value::Bool(true))
    }

    pub(super) fn parameter(&self, name: &str) -> u64 {
        self.parameters
            .get(name)
            .and_then(Value::as_u64)
            .unwrap_or(0)
    }
}

impl Machine {
    pub(super) fn new(arguments: &Arguments) -> Result<Arc<Self>> {
        let capabilities = [
            "auto-converge",
            "events",
            "late-block-activate",
            "multifd",
            "pause-before-switchover",
            "return-path",
            "switchover-ack",
        ];
        let parameters = json!({
            "downtime-limit": 300, "max-bandwidth": 128 << 20, "avail-switchover-bandwidth": 0, "multifd-channels": 2,
            STOP_WHEN_HELD: 0,
        });
        let machine = Arc::new(Self {
            tap: nic::open(&arguments.tap)?,
            memory: arguments.memory,
            main_loop: Turns::new(()),
            state: Turns::new(State {
                run: if arguments.incoming {
                    "inmigrate"
                } else {
                    "prelaunch"
                },
                autostart: !arguments.stopped,
                guest: Guest {
                    mac: arguments.mac,
                    addresses: arguments.addresses.clone(),
                    mtu: arguments.mtu,
                    ..Guest::default()
                },
                ram: Ram::new(arguments.memory),
                header_of_guest: false,
                swallowed: None,
                migration: Migration::default(),
                capabilities: capabilities
                    .iter()
                    .map(|name| ((*name).to_owned(), json!(false)))
                    .collect(),
                parameters: parameters.as_object().cloned().unwrap_or_default(),
            }),
            changed: Condvar::new(),
            listeners: Mutex::default(),
        });
        if !arguments.incoming && !arguments.stopped {
            machine.resume(&mut machine.lock())?;
        }
        Ok(machine)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// While this is held, no monitor answers, and the card reads nothing.
    pub(super) fn main_loop(&self) -> MutexGuard<'_, ()> {
        self.main_loop.lock()
    }

    /// The VM runs: what it had taken before is the first packet that its card gets.
    pub(super) fn resume(&self, state: &mut State) -> Result<()> {
        if state.running() {
            return Ok(());
        }
        state.run = "running";
        self.driver_is_up(state)?;
        self.tell("RESUME", json!({}));
        self.changed.notify_all();
        Ok(())
    }

    /// A guest's driver has come up, or a guest with one has arrived.
    pub(super) fn driver_is_up(&self, state: &mut State) -> Result<()> {
        nic::set_header(&self.tap, nic::GUEST_HEADER).context("set the header's length")?;
        state.header_of_guest = true;
        Ok(())
    }

    /// The VM runs no more.
    pub(super) fn stop(&self, state: &mut State, run: &'static str) {
        let ran = state.running();
        state.run = run;
        if ran {
            self.tell("STOP", json!({}));
        }
        self.changed.notify_all();
    }

    /// A frame for the guest; its answer goes back at once.
    pub(super) fn deliver(&self, state: &mut State, frame: &[u8]) {
        state.ram.note(frame);
        for answer in state.guest.answer(frame) {
            // A tap that takes no frame drops it, as any network may.
            nic::send(&self.tap, &answer).ok();
        }
    }

    pub(super) fn set_migration(&self, state: &mut State, status: &'static str) {
        state.migration.status = Some(status);
        if state.capability("events") {
            self.tell("MIGRATION", json!({"status": status}));
        }
        self.changed.notify_all();
    }

    /// Tells every monitor of an event.
    pub(super) fn tell(&self, event: &str, data: Value) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let message = json!({
            "event": event, "data": data,
            "timestamp": {"seconds": now.as_secs(), "microseconds": now.subsec_micros()},
        });
        let line = format!("{message}\r\n");
        let mut listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        listeners.retain_mut(|listener| listener.write_all(line.as_bytes()).is_ok());
    }

    /// From now on this monitor is told of events. What it writes goes out between them.
    pub(super) fn listen(&self, monitor: UnixStream) {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(monitor);
    }

    /// Writes a reply, never in the middle of an event.
    pub(super) fn reply(&self, monitor: &mut UnixStream, message: &Value) -> std::io::Result<()> {
        let _turn = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        monitor.write_all(format!("{message}\r\n").as_bytes())
    }
}
