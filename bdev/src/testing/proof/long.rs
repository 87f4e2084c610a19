//! One pool that runs, crashes and recovers again and again.

use super::run::{Run, live, look};
use super::sweep::{Failure, Mutation};
use super::{Act, Subject};
use crate::rng::Rng;
use crate::testing::expect::Expect;
use crate::testing::floor::Floor;
use crate::testing::medium::{Crash, Geometry, Medium, Order};

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Length {
    /// Crashes that it goes on from.
    pub rounds: u64,
    /// Acts before each of them, at most.
    pub acts: u64,
    /// Other outcomes of each crash that are looked at.
    pub others: u64,
}

/// Volumes there are at most.
const VOLUMES: u64 = 6;
/// Requests under way at once, at most.
const UNDER_WAY: usize = 12;

/// Draws what is done: blocks of volumes of up to `blocks`.
fn draw(rng: &mut Rng, blocks: u64) -> Act {
    let volume = rng.below(VOLUMES) as usize;
    let first = rng.below(blocks);
    let longest = [1, 4, blocks][rng.below(3) as usize];
    let count = 1 + rng.below(longest);
    match rng.below(64) {
        0..24 => Act::Write { volume, first, count, fua: rng.below(6) == 0 },
        24..30 => Act::Discard { volume, first, count },
        30..32 => Act::Zero { volume, first, count },
        32..42 => Act::Read { volume, first, count },
        42..48 => Act::Flush { volume },
        48..52 => Act::Snapshot { volumes: vec![volume] },
        52..54 => Act::Snapshot { volumes: (0..2 + rng.below(2)).map(|_| rng.below(VOLUMES) as usize).collect() },
        54..57 => Act::Clone { snapshot: volume },
        57 => Act::Delete { volume },
        58..61 => Act::DeleteSnapshot { snapshot: volume },
        61 => Act::Rollback { volume },
        62 if rng.below(2) == 0 => Act::Checkpoint,
        62 => Act::Resize { volume, blocks: 1 + rng.below(blocks) },
        _ => Act::Create { blocks },
    }
}

/// Runs from a seed. Gives how many crashes were looked at.
///
/// # Errors
/// The first thing that is wrong.
pub fn long_run<S: Subject>(
    geometry: Geometry,
    blocks: u64,
    seed: u64,
    length: Length,
    mutation: Option<Mutation>,
) -> Result<u64, Failure> {
    let mut rng = Rng::new(seed);
    let mut medium = Medium::new(geometry, Order::InOrder);
    S::create(&medium);
    medium = medium.crash(Crash::All, Order::Seeded(rng.next()));
    let mut expect = Expect::new();
    let mut looks = 0;
    // Instants of the round before: where the power goes off in the next.
    let mut instants = 100;
    for round in 0..length.rounds {
        let acts: Vec<Act> = (0..1 + rng.below(length.acts)).map(|_| draw(&mut rng, blocks)).collect();
        let cut = rng.below(instants + instants / 8 + 1);
        let failure =
            |crash, why| Failure { acts: acts.clone(), cut: Some(cut), crash, why: format!("round {round}: {why}") };
        if let Some(mutation) = mutation {
            mutation.spoil(&medium);
        }
        medium.stop_after(cut);
        let floor = Floor::seeded(rng.next());
        expect =
            live::<S>(&medium, floor, expect, |run| work(run, &acts, &mut rng)).map_err(|why| failure(None, why))?;
        instants = instants.max(medium.instants());
        let chosen = Crash::Seeded(rng.next());
        let others = (0..length.others).map(|_| Crash::Seeded(rng.next())).collect::<Vec<_>>();
        let named = [Crash::None, Crash::All].into_iter().take(length.others.min(2) as usize);
        for choice in named.chain(others) {
            look::<S>(&medium.crash(choice, Order::InOrder), expect.clone())
                .map_err(|why| failure(Some(choice), why))?;
            looks += 1;
        }
        let left = medium.crash(chosen, Order::Seeded(rng.next()));
        expect = look::<S>(&left, expect).map_err(|why| failure(Some(chosen), why))?;
        looks += 1;
        medium = left;
    }
    Ok(looks)
}

fn work<S: Subject>(run: &mut Run<S>, acts: &[Act], rng: &mut Rng) -> Result<(), String> {
    for act in acts {
        run.begin(act)?;
        for _ in 0..rng.below(40) {
            run.step()?;
        }
        while run.under_way() > UNDER_WAY && run.step()? {}
    }
    run.settle()
}
