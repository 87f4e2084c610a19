//! `pollux status`: one screen that says how the daemon is.

use serde_json::{Value, json};

use super::CliError;
use super::client::Client;
use super::output::{Output, cell, table, text};
use super::units::duration;

pub(crate) fn run(client: &mut Client, output: &Output) -> Result<(), CliError> {
    let status = client.call("pollux_get_status", Value::Null)?;
    let reactors = client.call("framework_get_reactors", Value::Null)?;
    let mut both = match status {
        Value::Object(members) => members,
        _ => serde_json::Map::new(),
    };
    both.insert("reactors".into(), reactors["reactors"].clone());
    both.insert("tick_rate".into(), reactors["tick_rate"].clone());
    let both = Value::Object(both);
    output.show(&both, people)
}

fn people(status: &Value) -> String {
    let mut lines = vec![format!(
        "pollux {} runs as pid {} for {}",
        cell(&status["version"]),
        cell(&status["pid"]),
        duration(status["uptime_seconds"].as_u64().unwrap_or_default())
    )];
    let mut line = |what: &str, value: String| lines.push(format!("  {what:<12} {value}"));
    let state =
        if status["ephemeral"] == json!(true) { "none (--ephemeral)".into() } else { cell(&status["state_dir"]) };
    line("state", state);
    line("sockets", cell(&status["vhost_dir"]));
    line("metrics", status["metrics_listen"].as_str().map_or("off".into(), |at| format!("http://{at}/metrics")));
    line("polling", cell(&status["poll"]));
    line("other cores", cores(&status["other_cores"]));
    line("bdevs", format!("{} ({} missing)", cell(&status["bdevs"]), cell(&status["bdevs_missing"])));
    line("controllers", format!("{} ({} sessions)", cell(&status["controllers"]), cell(&status["sessions"])));
    for warning in status["warnings"].as_array().into_iter().flatten() {
        line("warning", cell(warning));
    }
    format!("{}\n{}", lines.join("\n"), reactors(status))
}

fn cores(list: &Value) -> String {
    let numbers = list.as_array().into_iter().flatten().filter_map(Value::as_u64);
    pollux_reactor::describe_cores(&numbers.map(|core| core as usize).collect::<Vec<_>>())
}

fn reactors(status: &Value) -> String {
    let mut rows = table(&["REACTOR", "CORE", "WORKERS", "BUSY", "ASLEEP"]);
    for (number, reactor) in status["reactors"].as_array().into_iter().flatten().enumerate() {
        let time = |name: &str| reactor[name].as_f64().unwrap_or_default();
        let (busy, idle) = (time("busy"), time("idle"));
        let share = if busy + idle > 0.0 { 100.0 * busy / (busy + idle) } else { 0.0 };
        rows.add_row([
            number.to_string(),
            cell(&reactor["lcore"]),
            cores(&reactor["worker_cores"]),
            format!("{share:.1} %"),
            if reactor["in_interrupt"] == json!(true) { "yes".into() } else { "no".to_owned() },
        ]);
    }
    text(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_survives_any_answer() {
        for odd in [json!({}), json!(null), json!({"reactors": [{}, 3], "warnings": 7})] {
            assert!(people(&odd).starts_with("pollux"));
        }
        let text = people(&json!({"version": "0.1.0", "pid": 7, "uptime_seconds": 61, "ephemeral": false,
            "state_dir": "/s", "metrics_listen": "127.0.0.1:9", "other_cores": [0, 1, 5], "reactors": [{"lcore": 3, "busy": 1, "idle": 3}]}));
        assert!(
            text.contains("25.0 %") && text.contains("0-1,5") && text.contains("http://127.0.0.1:9/metrics"),
            "{text}"
        );
    }
}
