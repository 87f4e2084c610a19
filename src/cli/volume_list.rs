//! Volumes, snapshots and clones as a tree: a volume with its snapshots under it, the latest first, and under a snapshot
//! the clones of it.
//!
//! In the pool it is the other way round: a volume stands on its latest snapshot, that on the one before, and clones stand
//! on what they are clones of. Of several that stand on a snapshot the one that was made first is the one that has it;
//! others are its clones. Whatever the answer says, each member of it is shown once.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::output::{cell, table, text};
use super::units::{duration, size};

/// A table of what `bdev_lvol_get_lvols` answers.
pub(crate) fn people(volumes: &Value) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    at(volumes, now)
}

fn at(volumes: &Value, now: u64) -> String {
    let volumes = volumes.as_array().map(Vec::as_slice).unwrap_or_default();
    if volumes.is_empty() {
        return "no volumes; `pollux volume create POOL/NAME --size SIZE` makes one\n".into();
    }
    let mut head = vec!["VOLUME", "KIND", "SIZE", "WRITTEN", "OWN", "SHARED", "QUOTA", "AGE"];
    let has_origins = volumes.iter().any(|volume| origin(volume).is_some());
    if has_origins {
        head.push("STANDS ON");
    }
    let mut rows = table(&head);
    for (label, index) in tree(volumes) {
        let volume = &volumes[index];
        let sized = |name: &str| volume[name].as_u64().map_or_else(|| "-".into(), size);
        let quota = volume["quota_bytes"].as_u64().filter(|quota| *quota > 0);
        let mut row = vec![
            label,
            if volume["is_degraded"] == true { format!("{}, not ready", kind(volume)) } else { kind(volume).into() },
            sized("size_bytes"),
            sized("written_bytes"),
            sized("owned_bytes"),
            sized("shared_bytes"),
            quota.map_or_else(|| "-".into(), size),
            volume["created"].as_u64().map_or_else(|| "-".into(), |then| duration(now.saturating_sub(then))),
        ];
        if has_origins {
            row.push(origin(volume).unwrap_or_else(|| "-".into()));
        }
        rows.add_row(row);
    }
    text(&rows)
}

/// The bdev outside of the pool that it stands on itself: its name, or its UUID if it is not there. What stands on a snapshot
/// stands on that one's.
fn origin(volume: &Value) -> Option<String> {
    let of = &volume["origin"];
    let stands_on_snapshot = volume["parent"].is_object();
    let name = of["name"].as_str().map(ToOwned::to_owned);
    let named = name.or_else(|| of["uuid"].as_str().map(|uuid| format!("{uuid} (missing)")));
    named.filter(|_| !stands_on_snapshot)
}

fn kind(volume: &Value) -> &'static str {
    if volume["is_snapshot"] == true {
        "snapshot"
    } else if is_thick(volume) {
        "thick"
    } else {
        "thin"
    }
}

/// All of its space is kept for it.
fn is_thick(volume: &Value) -> bool {
    let bytes = |name: &str| volume[name].as_u64().unwrap_or_default();
    bytes("reserved_bytes") > 0 && bytes("reserved_bytes") >= bytes("size_bytes")
}

/// Every volume once, in the order in which they are shown, with its name behind the branches of the tree.
fn tree(volumes: &[Value]) -> Vec<(String, usize)> {
    let forest = Forest::grow(volumes);
    let mut out = Vec::with_capacity(volumes.len());
    // Without recursion: chains and trees may be deep.
    let mut left: Vec<Step> = forest.roots.iter().rev().map(|&index| Step::root(index)).collect();
    while let Some(step) = left.pop() {
        let volume = &volumes[step.index];
        let name = if step.depth == 0 { cell(&volume["alias"]) } else { cell(&volume["name"]) };
        out.push((format!("{}{name}", step.before), step.index));
        let below = &forest.below[step.index];
        for (at, &index) in below.iter().enumerate().rev() {
            left.push(step.branch(index, at + 1 == below.len()));
        }
    }
    out
}

/// What is still to be shown.
struct Step {
    index: usize,
    depth: usize,
    /// The branches before its name.
    before: String,
    /// The branches before those of what is below it.
    under: String,
}

impl Step {
    const fn root(index: usize) -> Step {
        Step { index, depth: 0, before: String::new(), under: String::new() }
    }

    fn branch(&self, index: usize, last: bool) -> Step {
        let (here, under) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        Step {
            index,
            depth: self.depth + 1,
            before: format!("{}{here}", self.under),
            under: format!("{}{under}", self.under),
        }
    }
}

/// Who is shown under whom.
struct Forest {
    roots: Vec<usize>,
    below: Vec<Vec<usize>>,
}

impl Forest {
    fn grow(volumes: &[Value]) -> Forest {
        let by_uuid: HashMap<&str, usize> =
            volumes.iter().enumerate().filter_map(|(index, volume)| Some((volume["uuid"].as_str()?, index))).collect();
        let parent = |index: usize| by_uuid.get(volumes[index]["parent"]["uuid"].as_str()?).copied();
        // Volumes first, then snapshots that nobody stands on: each is the head of a chain.
        let mut heads: Vec<usize> = (0..volumes.len()).collect();
        let is_snapshot = |index: usize| volumes[index]["is_snapshot"] == true;
        let has_children = |index: usize| volumes[index]["children"].as_array().is_some_and(|all| !all.is_empty());
        heads.sort_by_key(|&index| (is_snapshot(index), has_children(index), volumes[index]["created"].as_u64()));
        let mut forest = Forest { roots: Vec::new(), below: vec![Vec::new(); volumes.len()] };
        let mut shown = vec![false; volumes.len()];
        for head in heads {
            if shown[head] {
                continue;
            }
            shown[head] = true;
            let mut next = parent(head);
            while let Some(index) = next.filter(|&index| !shown[index]) {
                shown[index] = true;
                forest.below[head].push(index);
                next = parent(index);
            }
            match next.filter(|&index| index != head && !forest.below[head].contains(&index)) {
                // Somebody else has what it stands on.
                Some(of) if is_snapshot(of) => forest.below[of].push(head),
                _ => forest.roots.push(head),
            }
        }
        forest.roots.sort_by(|&a, &b| volumes[a]["alias"].as_str().cmp(&volumes[b]["alias"].as_str()));
        forest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn volume(name: &str, snapshot: bool, parent: Option<&str>, children: usize, created: u64) -> Value {
        json!({"alias": format!("p/{name}"), "name": name, "uuid": name, "is_snapshot": snapshot, "created": created,
               "parent": parent.map(|name| json!({"uuid": name})), "children": vec![0; children],
               "is_thin_provisioned": true, "size_bytes": 1 << 30, "owned_bytes": 65536, "written_bytes": 4096})
    }

    fn labels(volumes: &[Value]) -> Vec<String> {
        tree(volumes).into_iter().map(|(label, _)| label).collect()
    }

    #[test]
    fn snapshots_are_under_their_volume_and_clones_under_their_snapshot() {
        let all = [
            volume("w", false, None, 0, 6),
            volume("s1", true, None, 1, 10),
            volume("s2", true, Some("s1"), 2, 20),
            volume("v", false, Some("s2"), 0, 5),
            volume("cs", true, Some("s2"), 1, 40),
            volume("c", false, Some("cs"), 0, 30),
        ];
        assert_eq!(labels(&all), ["p/v", "├─ s2", "│  └─ c", "│     └─ cs", "└─ s1", "p/w"]);
    }

    #[test]
    fn what_stands_on_a_bdev_outside_says_so() {
        let with = |volume: Value, origin: Value| {
            let mut volume = volume;
            volume["origin"] = origin;
            volume
        };
        let golden = json!({"uuid": "7", "name": "golden", "bytes": 4096});
        let all = json!([
            with(volume("v", false, Some("s"), 0, 2), golden.clone()),
            with(volume("s", true, None, 1, 1), golden),
            with(volume("w", false, None, 0, 3), json!({"uuid": "8", "name": null, "bytes": 4096})),
            volume("x", false, None, 0, 4),
        ]);
        let shown = at(&all, 9);
        let rows: Vec<&str> = shown.lines().map(str::trim_end).collect();
        let ends = |row: usize, with: &str| assert!(rows[row].ends_with(with), "{shown}");
        ends(0, "STANDS ON");
        ends(1, "-");
        ends(2, "golden");
        ends(3, "8 (missing)");
        ends(4, "-");
        assert!(!at(&json!([volume("x", false, None, 0, 4)]), 9).contains("STANDS ON"));
    }

    #[test]
    fn what_waits_for_what_it_stands_on_is_told_apart() {
        let mut all = json!([volume("v", false, None, 0, 1), volume("w", false, None, 0, 2)]);
        all[1]["is_degraded"] = true.into();
        let shown = at(&all, 3);
        let lines: Vec<&str> = shown.lines().filter(|line| line.contains("not ready")).collect();
        assert!(lines.len() == 1 && lines[0].contains("p/w"), "{shown}");
    }

    #[test]
    fn snapshots_that_nobody_stands_on_are_seen() {
        let rolled_back = [
            volume("s1", true, None, 2, 1),
            volume("s2", true, Some("s1"), 0, 2),
            volume("v", false, Some("s1"), 0, 0),
        ];
        assert_eq!(labels(&rolled_back), ["p/v", "└─ s1", "   └─ s2"]);
        let left = [volume("s1", true, None, 1, 1), volume("s2", true, Some("s1"), 0, 2)];
        assert_eq!(labels(&left), ["p/s2", "└─ s1"]);
    }

    #[test]
    fn the_table_has_sizes_for_people() {
        let shown = at(&json!([volume("v", false, None, 0, 0)]), 90);
        assert!(shown.contains("thin") && shown.contains("1 GiB  4 KiB    64 KiB"), "{shown}");
        assert!(shown.contains("1 min 30 s"), "{shown}");
        let reserved = |bytes: u64| json!([{"size_bytes": 10, "reserved_bytes": bytes}]);
        assert!(at(&reserved(9), 0).contains("thin") && at(&reserved(10), 0).contains("thick"));
        assert!(at(&json!([]), 0).contains("volume create"));
        for odd in [json!(7), json!([3]), json!([{}, {}])] {
            assert!(!at(&odd, 0).is_empty());
        }
    }

    proptest! {
        #[test]
        fn each_is_shown_once(kinds in prop::collection::vec((any::<bool>(), 0usize..12, 0u64..4), 1..12)) {
            let all: Vec<_> = kinds.iter().enumerate().map(|(index, &(snapshot, parent, created))| {
                let of = format!("n{parent}");
                volume(&format!("n{index}"), snapshot, (parent < kinds.len()).then_some(of.as_str()), parent % 2, created)
            }).collect();
            let mut shown: Vec<_> = tree(&all).into_iter().map(|(_, index)| index).collect();
            shown.sort_unstable();
            prop_assert_eq!(shown, (0..all.len()).collect::<Vec<_>>());
        }
    }
}
