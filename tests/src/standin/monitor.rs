//! QMP: one client at a time on each socket, replies with the request's id, events to all.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::machine::Machine;
use super::requests::Requests;
use super::{migration, nic, socket};

/// Listens on all sockets.
pub(super) fn listen(machine: &Arc<Machine>, paths: &[PathBuf]) -> Result<Vec<JoinHandle<()>>> {
    let mut threads = Vec::new();
    for path in paths {
        // As QEMU does: what another one has left does not keep it from listening.
        std::fs::remove_file(path).ok();
        let listener =
            UnixListener::bind(path).with_context(|| format!("listen at {}", path.display()))?;
        let machine = Arc::clone(machine);
        threads.push(thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // One that goes away is followed by the next.
                serve(&machine, client).ok();
            }
        }));
    }
    Ok(threads)
}

fn serve(machine: &Arc<Machine>, mut client: UnixStream) -> Result<()> {
    let version =
        json!({"qemu": {"major": 10, "minor": 0, "micro": 0}, "package": "katamaran's stand-in"});
    let greeting = json!({"QMP": {"version": version, "capabilities": []}});
    machine.reply(&mut client, &greeting)?;
    let mut requests = Requests::new(client.try_clone().context("clone the client's socket")?);
    let mut handed = HashMap::new();
    while let Some(line) = requests.line()? {
        if line.trim().is_empty() {
            continue;
        }
        let request: Value = serde_json::from_str(&line).context("read a request")?;
        let name = request["execute"].as_str().unwrap_or_default();
        let arguments = &request["arguments"];
        let main_loop = machine.main_loop();
        let executed = match name {
            "getfd" => take(&mut requests, &mut handed, arguments),
            "migrate" => migrate_to(machine, &mut handed, arguments),
            _ => execute(machine, name, arguments),
        };
        drop(main_loop);
        let mut reply = match executed {
            Ok(returned) => json!({ "return": returned }),
            Err(error) => json!({"error": {"class": class(&error), "desc": format!("{error:#}")}}),
        };
        if let Some(id) = request.get("id") {
            reply["id"] = id.clone();
        }
        machine.reply(&mut client, &reply)?;
        match name {
            "qmp_capabilities" => {
                machine.listen(client.try_clone().context("clone the client's socket")?)
            }
            "quit" => std::process::exit(0),
            _ => {}
        }
    }
    Ok(())
}

/// `getfd`: a descriptor that has come along.
fn take(
    requests: &mut Requests,
    handed: &mut HashMap<String, OwnedFd>,
    arguments: &Value,
) -> Result<Value> {
    let name = arguments["fdname"].as_str().unwrap_or_default();
    let descriptor = requests
        .descriptor()
        .context("No file descriptor supplied via SCM_RIGHTS")?;
    handed.insert(name.to_owned(), descriptor);
    Ok(json!({}))
}

/// `migrate`: to an address, or to a socket that was handed to us.
fn migrate_to(
    machine: &Arc<Machine>,
    handed: &mut HashMap<String, OwnedFd>,
    arguments: &Value,
) -> Result<Value> {
    let uri = arguments["uri"].as_str().unwrap_or_default();
    let stream = match uri.strip_prefix("fd:") {
        Some(name) => handed
            .remove(name)
            .with_context(|| format!("File descriptor named '{name}' has not been found"))?
            .into(),
        None => socket::connect(uri)?,
    };
    migration::send(machine, stream)?;
    Ok(json!({}))
}

const UNKNOWN: &str = "has not been found";

fn class(error: &anyhow::Error) -> &'static str {
    if error.to_string().ends_with(UNKNOWN) {
        "CommandNotFound"
    } else {
        "GenericError"
    }
}

fn execute(machine: &Arc<Machine>, name: &str, arguments: &Value) -> Result<Value> {
    let done = json!({});
    match name {
        "qmp_capabilities" | "quit" | "nbd-server-stop" => Ok(done),
        "query-block" | "query-named-block-nodes" | "query-block-jobs" | "query-block-exports" => {
            Ok(json!([]))
        }
        "query-status" => {
            let state = machine.lock();
            Ok(json!({"running": state.running(), "status": state.run}))
        }
        "query-memory-size-summary" => {
            Ok(json!({"base-memory": machine.memory, "plugged-memory": 0}))
        }
        "query-cpus-fast" => Ok(json!([
            {"cpu-index": 0, "qom-path": "/machine/unattached/device[0]", "thread-id": std::process::id(), "target": "x86_64"}
        ])),
        "query-rx-filter" => {
            let mac = machine
                .lock()
                .guest
                .mac
                .map(|byte| format!("{byte:02x}"))
                .join(":");
            Ok(json!([{"name": "nic0", "main-mac": mac, "promiscuous": false}]))
        }
        "qom-get" if arguments["path"] == "/machine" && arguments["property"] == "type" => {
            Ok(json!("pc-q35-10.0-machine"))
        }
        "stop" => {
            let mut state = machine.lock();
            state.autostart = false;
            if state.running() {
                machine.stop(&mut state, "paused");
            }
            Ok(done)
        }
        "cont" => {
            let mut state = machine.lock();
            match state.run {
                "inmigrate" => state.autostart = true,
                "finish-migrate" => bail!("the VM is being migrated"),
                _ => machine.resume(&mut state)?,
            }
            Ok(done)
        }
        "announce-self" => {
            announce(machine, arguments);
            Ok(done)
        }
        _ => migrate(machine, name, arguments),
    }
}

fn migrate(machine: &Arc<Machine>, name: &str, arguments: &Value) -> Result<Value> {
    let done = json!({});
    match name {
        "migrate-incoming" => {
            let uri = arguments["uri"].as_str().unwrap_or_default();
            migration::receive(machine, socket::Listener::bind(uri)?)?;
        }
        "migrate_cancel" => migration::cancel(machine),
        "migrate-continue" => {
            let mut state = machine.lock();
            if state.migration.status != Some("pre-switchover") {
                bail!("the migration is not paused");
            }
            state.migration.go_on = true;
            machine.changed.notify_all();
        }
        "query-migrate" => {
            let state = machine.lock();
            let migration = &state.migration;
            let Some(status) = migration.status else {
                return Ok(done);
            };
            return Ok(json!({
                "status": status, "error-desc": migration.error, "downtime": migration.downtime_ms,
                "ram": {
                    "total": machine.memory, "remaining": migration.remaining,
                    "transferred": migration.transferred, "dirty-sync-count": migration.syncs,
                },
            }));
        }
        "query-migrate-capabilities" => {
            let state = machine.lock();
            let all = state.capabilities.iter();
            return Ok(all
                .map(|(name, on)| json!({"capability": name, "state": on}))
                .collect());
        }
        "migrate-set-capabilities" => {
            let mut state = machine.lock();
            for change in arguments["capabilities"].as_array().into_iter().flatten() {
                let name = change["capability"].as_str().unwrap_or_default();
                if name == "multifd" && change["state"] == true {
                    bail!("the stand-in has one stream only");
                }
                match state.capabilities.get_mut(name) {
                    Some(state) => *state = change["state"].clone(),
                    None => bail!("unknown capability {name}"),
                }
            }
        }
        "query-migrate-parameters" => return Ok(machine.lock().parameters.clone().into()),
        "migrate-set-parameters" => {
            let mut state = machine.lock();
            for (name, value) in arguments.as_object().into_iter().flatten() {
                match state.parameters.get_mut(name) {
                    Some(parameter) => *parameter = value.clone(),
                    None => bail!("unknown parameter {name}"),
                }
            }
        }
        other => bail!("The command {other} {UNKNOWN}"),
    }
    Ok(done)
}

/// Says on the network where the guest is, round after round.
fn announce(machine: &Arc<Machine>, arguments: &Value) {
    let number = |name: &str| arguments[name].as_u64().unwrap_or(0);
    let (rounds, step, longest) = (number("rounds"), number("step"), number("max"));
    let mut pause = number("initial");
    let machine = Arc::clone(machine);
    thread::spawn(move || {
        for _ in 0..rounds {
            let frame = machine.lock().guest.announcement();
            // Nobody hears it if the tap is down.
            nic::send(&machine.tap, &frame).ok();
            thread::sleep(Duration::from_millis(pause));
            pause = (pause + step).min(longest);
        }
    });
}
