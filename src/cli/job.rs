//! `pollux job`: what takes long in the daemon; and how the commands that start it follow it.

use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use serde_json::{Value, json};

use super::CliError;
use super::client::{CallError, Client};
use super::output::{Output, cell, table, text};
use super::progress::Bar;
use super::units::{duration, size};

/// How often a job is asked how far it is.
const EVERY: Duration = Duration::from_millis(200);
/// The same for one that has just begun: it may be short.
const FIRST: Duration = Duration::from_millis(10);

#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// List what runs and what has ended lately
    List,
    /// Have a job end; what it had made so far is taken away again, but for what was copied into a volume or bdev
    Cancel {
        /// Its id, or as much of its beginning as no other job has
        job: String,
    },
    /// Wait until a job has ended; exit code 0 if it is complete, 1 if not
    Wait {
        /// Its id, or as much of its beginning as no other job has
        job: String,
    },
}

pub(crate) fn run(
    command: &JobCommand,
    connect: impl FnOnce() -> Result<Client, CallError>,
    output: &Output,
) -> Result<(), CliError> {
    let mut client = connect()?;
    match command {
        JobCommand::List => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            output.show(&client.call("job_get_jobs", Value::Null)?, |jobs| list(jobs, now))
        }
        JobCommand::Cancel { job } => {
            let id = find(&mut client, job)?;
            let done = client.call("job_cancel", json!({ "job_id": id }))?;
            output.show(&done, |_| format!("job {id} is to end; `pollux job wait {id}` waits for it\n"))
        }
        JobCommand::Wait { job } => {
            let id = find(&mut client, job)?;
            let ended = wait(&mut client, &id, None)?;
            output.show(&ended, |job| format!("job {id}: {}\n", cell(&job["state"])))?;
            refuse_unless_complete(&ended)
        }
    }
}

/// Calls a method as a job and waits for it with a bar. Its result, as if it had been called without.
pub(crate) fn follow(client: &mut Client, method: &str, mut params: Value, what: &str) -> Result<Value, CliError> {
    params["job"] = true.into();
    let started = client.call(method, params)?;
    let id = cell(&started["job_id"]);
    let mut ended = wait(client, &id, Some(what))?;
    refuse_unless_complete(&ended)?;
    Ok(ended["result"].take())
}

/// Waits for the end of a job; shows how far it is.
pub(crate) fn wait(client: &mut Client, id: &str, what: Option<&str>) -> Result<Value, CliError> {
    let (mut bar, mut pause) = (None::<Bar>, FIRST);
    loop {
        let mut jobs = client.call("job_get_jobs", json!({ "job_id": id }))?;
        let job = jobs[0].take();
        if job["state"] != "running" {
            if let Some(bar) = &bar {
                bar.end();
            }
            return Ok(job);
        }
        let bar = bar.get_or_insert_with(|| Bar::new(what.unwrap_or(&cell(&job["kind"]))));
        bar.show_bytes(number(&job["done_bytes"]), number(&job["total_bytes"]));
        thread::sleep(pause);
        pause = (pause * 2).min(EVERY);
    }
}

pub(crate) fn refuse_unless_complete(job: &Value) -> Result<(), CliError> {
    match job["state"].as_str() {
        Some("complete") => Ok(()),
        Some("failed") => Err(CliError::Failed(cell(&job["error"]["detail"]))),
        _ => Err(CliError::Failed(format!("the job {} was cancelled", cell(&job["job_id"])))),
    }
}

/// The id that begins so.
fn find(client: &mut Client, start: &str) -> Result<String, CliError> {
    chosen(&client.call("job_get_jobs", Value::Null)?, start)
}

fn chosen(jobs: &Value, start: &str) -> Result<String, CliError> {
    let ids = jobs.as_array().into_iter().flatten().filter_map(|job| job["job_id"].as_str());
    let found: Vec<&str> = ids.filter(|id| !start.is_empty() && id.starts_with(&start.to_lowercase())).collect();
    match found[..] {
        [id] => Ok(id.to_owned()),
        [] => Err(CliError::Failed(format!("there is no job '{start}'; `pollux job list` shows which there are"))),
        _ => Err(CliError::Failed(format!("{} jobs begin with '{start}'; write more of it", found.len()))),
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

fn list(jobs: &Value, now: u64) -> String {
    let jobs = jobs.as_array().map(Vec::as_slice).unwrap_or_default();
    if jobs.is_empty() {
        return "no jobs\n".into();
    }
    let mut rows = table(&["JOB", "KIND", "OBJECT", "STATE", "DONE", "OF", "TOOK"]);
    for job in jobs {
        let state = if job["cancelling"] == true { "cancelling".into() } else { cell(&job["state"]) };
        let until = job["ended"].as_u64().unwrap_or(now);
        rows.add_row([
            cell(&job["job_id"]).chars().take(8).collect(),
            cell(&job["kind"]),
            cell(&job["object"]),
            state,
            size(number(&job["done_bytes"])),
            size(number(&job["total_bytes"])),
            duration(until.saturating_sub(number(&job["started"]))),
        ]);
    }
    let mut out = text(&rows);
    for job in jobs.iter().filter(|job| job["state"] == "failed") {
        let id: String = cell(&job["job_id"]).chars().take(8).collect();
        out += &format!("{id} has failed: {}\n", cell(&job["error"]["detail"]));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jobs() -> Value {
        json!([
            {"job_id": "1234abcd-0000", "kind": "export", "object": "p/v", "state": "running", "done_bytes": 1 << 20,
             "total_bytes": 2 << 20, "started": 100},
            {"job_id": "1299abcd-0000", "kind": "import", "object": "p/w", "state": "failed", "started": 90, "ended": 95,
             "error": {"reason": "io", "detail": "it broke"}},
        ])
    }

    #[test]
    fn jobs_are_listed_with_what_has_failed() {
        let shown = list(&jobs(), 160);
        assert!(shown.contains("1234abcd  export  p/v") && shown.contains("1 MiB  2 MiB  1 min 0 s"), "{shown}");
        assert!(shown.contains("1299abcd has failed: it broke"), "{shown}");
        for odd in [json!([]), json!(null), json!([7, {}])] {
            assert!(!list(&odd, 0).is_empty());
        }
    }

    #[test]
    fn a_job_is_found_by_how_its_id_begins() {
        assert_eq!(chosen(&jobs(), "1234A").map_err(|error| error.to_string()), Ok("1234abcd-0000".into()));
        for (start, told) in [("12", "2 jobs"), ("9", "no job"), ("", "no job")] {
            let error = chosen(&jobs(), start).expect_err(start).to_string();
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn the_end_of_a_job_is_the_end_of_its_command() {
        assert!(refuse_unless_complete(&json!({"state": "complete"})).is_ok());
        let failed = refuse_unless_complete(&jobs()[1]).expect_err("failed");
        assert_eq!(failed.to_string(), "it broke");
        assert!(refuse_unless_complete(&json!({"state": "cancelled"})).is_err());
    }
}
