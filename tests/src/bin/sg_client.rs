//! Works on a whole SCSI device through Pollux, and on the device itself, on the machine where both are: compares what each
//! says to the same commands, loads the device and verifies on both ways, aborts, resets, and dies with commands in flight.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, Subcommand};
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{Command, DriverOptions, FIRST_REQUEST_QUEUE, Framing, Lun, Response, Tmf, cdb};
use pollux_tests::rng::Rng;
use pollux_tests::sg_device::SgDevice;

/// How long an answer may take: devices are slow on purpose, and the machine is emulated.
const PATIENCE: Duration = Duration::from_secs(60);
const BLOCK: usize = 512;

#[derive(Parser)]
struct Args {
    /// Socket of the controller
    #[arg(long)]
    socket: PathBuf,
    /// Target on it
    #[arg(long)]
    target: u8,
    /// The device itself
    #[arg(long)]
    device: PathBuf,
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Says the same to both
    Compare,
    /// Writes at random through Pollux, reads back both ways
    Load {
        /// How many rounds
        #[arg(long)]
        rounds: u32,
        /// Where randomness starts
        #[arg(long)]
        seed: u64,
    },
    /// Commands that a guest may not give
    Refused,
    /// Aborts and resets a slow device
    Manage,
    /// Leaves commands in flight
    Die,
    /// Finds the device gone
    Gone,
}

struct Client {
    front: FrontEnd,
    lun: Lun,
    device: Option<SgDevice>,
}

impl Client {
    fn new(args: &Args) -> Result<Self> {
        let front = FrontEnd::connect(&args.socket, &DriverOptions::default())?;
        let device = if matches!(args.task, Task::Gone) { None } else { Some(SgDevice::open(&args.device)?) };
        Ok(Client { front, lun: Lun::new(args.target, 0), device })
    }

    fn device(&self) -> Result<&SgDevice> {
        self.device.as_ref().context("the device is open")
    }

    /// Takes the unit attentions of both.
    fn settle(&mut self) -> Result<()> {
        for _ in 0..16 {
            let through = self.front.cdb(self.lun, &cdb::TEST_UNIT_READY, &[], 0)?;
            let direct = self.device()?.cdb(&cdb::TEST_UNIT_READY, &[], 0)?;
            let attention = |status: u8, key: Option<u8>| status == 2 && key.is_some_and(|key| key & 0x0F == 6);
            if !attention(through.status, through.sense_key().map(|sense| sense.0))
                && !attention(direct.status, direct.sense.get(2).copied())
            {
                return Ok(());
            }
        }
        bail!("unit attentions without end")
    }

    /// Says the same to both; what the device said.
    fn same(&mut self, what: &str, cdb: &[u8], out: &[u8], in_len: usize) -> Result<Response> {
        let direct = self.device()?.cdb(cdb, out, in_len)?;
        let through = self.front.cdb(self.lun, cdb, out, in_len)?;
        let moved = in_len - usize::try_from(through.residual).map_or(0, |residual| residual.min(in_len));
        let equal = through.response == 0
            && direct.host_status == 0
            && (through.status, &through.sense) == (direct.status, &direct.sense)
            && i64::from(through.residual) == i64::from(direct.residual)
            // Of a command that failed nobody says what was moved.
            && (direct.status != 0 || through.data[..moved] == direct.data[..moved]);
        ensure!(equal, "{what}: {cdb:02x?}\nthrough Pollux {through:02x?}\nthe device     {direct:02x?}");
        let written = 108 + if out.is_empty() { moved } else { 0 };
        ensure!(through.written as usize == written, "{what}: {} bytes written, not {written}", through.written);
        println!("{what}: status {:#04x}, {moved} bytes", through.status);
        Ok(through)
    }

    fn compare(&mut self) -> Result<()> {
        self.settle()?;
        // What sg_inq, sg_vpd, sg_modes, sg_logs, sg_opcodes and sg_readcap send.
        let standard = self.same("INQUIRY", &cdb::inquiry(None, 36), &[], 36)?;
        self.same("INQUIRY", &cdb::inquiry(None, 252), &[], 252)?;
        let pages = self.same("VPD 00", &cdb::inquiry(Some(0), 252), &[], 252)?.data;
        for page in &pages[4..4 + usize::from(pages[3])] {
            self.same(&format!("VPD {page:02x}"), &cdb::inquiry(Some(*page), 252), &[], 252)?;
        }
        self.same("an unknown VPD page", &cdb::inquiry(Some(0x7A), 252), &[], 252)?;
        for page in [0x3F, 0x0A, 0x1C, 0x08, 0x3E] {
            for control in [0x00, 0x40, 0x80, 0xC0] {
                let what = format!("MODE SENSE {:02x}", page | control);
                self.same(&what, &[0x5A, 0, page | control, 0, 0, 0, 0, 0, 252, 0], &[], 252)?;
                self.same(&what, &[0x1A, 0, page | control, 0, 252, 0], &[], 252)?;
            }
        }
        self.same("MODE SENSE 3f,ff", &[0x5A, 0, 0x3F, 0xFF, 0, 0, 0, 4, 0, 0], &[], 1024)?;
        for page in [0x00, 0x0D, 0x2F, 0x15] {
            self.same(&format!("LOG SENSE {page:02x}"), &[0x4D, 0, 0x40 | page, 0, 0, 0, 0, 2, 0, 0], &[], 512)?;
        }
        self.same("REPORT SUPPORTED OPERATION CODES", &[0xA3, 0x0C, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0], &[], 8192)?;
        self.same("REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS", &[0xA3, 0x0D, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0], &[], 16)?;
        self.same("REPORT TARGET PORT GROUPS", &[0xA3, 0x0A, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], &[], 256)?;
        self.same("TEST UNIT READY", &cdb::TEST_UNIT_READY, &[], 0)?;
        self.same("REQUEST SENSE", &[0x03, 0, 0, 0, 252, 0], &[], 252)?;
        self.same("REQUEST SENSE, descriptors", &[0x03, 1, 0, 0, 252, 0], &[], 252)?;
        match standard.data[0] & 0x1F {
            0 => self.compare_disk(),
            1 => self.compare_tape(),
            _ => Ok(()),
        }
    }

    fn compare_disk(&mut self) -> Result<()> {
        self.same("READ CAPACITY (10)", &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 8)?;
        self.same("READ CAPACITY (16)", &cdb::read_capacity16(), &[], 32)?;
        let data: Vec<u8> = (0..8 * BLOCK).map(|at| (at / 3) as u8).collect();
        self.same("WRITE (10)", &cdb::write10(40, 8, false), &data, 0)?;
        ensure!(self.same("READ (10)", &cdb::read10(40, 8), &[], 8 * BLOCK)?.data == data, "not what was written");
        self.same("READ (16)", &cdb::read16(40, 8), &[], 8 * BLOCK)?;
        self.same("READ (10) into more than it asks for", &cdb::read10(40, 2), &[], 8 * BLOCK)?;
        self.same("READ (10) beyond the end", &cdb::read10(u32::MAX - 1, 1), &[], BLOCK)?;
        self.same("READ (10) of a bad block", &cdb::read10(0x1230, 8), &[], 8 * BLOCK)?;
        self.same("VERIFY (10)", &[0x2F, 0, 0, 0, 0, 40, 0, 0, 8, 0], &[], 0)?;
        self.same("WRITE SAME (16)", &cdb::write_same16(40, 8, false, false), &[0x5A; BLOCK], 0)?;
        self.same("READ (10)", &cdb::read10(36, 16), &[], 16 * BLOCK)?;
        let (unmap, list) = cdb::unmap(&[(64, 8)]);
        self.same("UNMAP", &unmap, &list, 0)?;
        self.same("GET LBA STATUS", &[0x9E, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0], &[], 64)?;
        self.same("SYNCHRONIZE CACHE (10)", &cdb::sync10(), &[], 0)?;
        self.same("READ (16) of 8 MiB", &cdb::read16(0, 8 << 11), &[], 8 << 20)?;
        // A list that is looked at, and what it says is the device's then.
        let sense = self.same("MODE SENSE 0a", &[0x1A, 0x08, 0x0A, 0, 252, 0], &[], 252)?;
        let mut list = sense.data[..16].to_vec();
        list[..4].fill(0);
        list[6] ^= 0x04;
        self.front.good(self.lun, &[0x15, 0x10, 0, 0, 16, 0], &list, 0)?;
        self.settle()?;
        let after = self.same("MODE SENSE 0a", &[0x1A, 0x08, 0x0A, 0, 252, 0], &[], 252)?;
        ensure!(after.data[4..16] == list[4..], "{after:02x?}");
        list[6] ^= 0x04;
        self.front.good(self.lun, &[0x15, 0x10, 0, 0, 16, 0], &list, 0)?;
        self.settle()
    }

    /// Whatever the device knows of these: it says the same either way.
    fn compare_tape(&mut self) -> Result<()> {
        self.same("REWIND", &[0x01, 0, 0, 0, 0, 0], &[], 0)?;
        self.same("READ BLOCK LIMITS", &[0x05, 0, 0, 0, 0, 0], &[], 6)?;
        self.same("READ POSITION", &[0x34, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 20)?;
        self.same("WRITE FILEMARKS (6)", &[0x10, 0, 0, 0, 1, 0], &[], 0)?;
        self.same("SPACE (6)", &[0x11, 1, 0xFF, 0xFF, 0xFF, 0], &[], 0)?;
        self.same("REPORT DENSITY SUPPORT", &[0x44, 0, 0, 0, 0, 0, 0, 0, 252, 0], &[], 252)?;
        Ok(())
    }

    fn load(&mut self, rounds: u32, seed: u64) -> Result<()> {
        const STRIPES: u64 = 16;
        const MOST: u64 = 200;
        self.settle()?;
        let capacity = self.front.good(self.lun, &cdb::read_capacity16(), &[], 32)?;
        let blocks = 1 + u64::from_be_bytes(capacity.data[..8].try_into()?);
        let stripe = blocks / STRIPES;
        let mut rng = Rng::new(seed);
        let mut image = vec![0; usize::try_from(blocks)? * BLOCK];
        for (at, piece) in image.chunks_mut(256 * BLOCK).enumerate() {
            rng.fill(piece);
            self.front.good(self.lun, &cdb::write16(at as u64 * 256, (piece.len() / BLOCK) as u32, false), piece, 0)?;
        }
        for round in 0..rounds {
            let mut open = Vec::new();
            for nth in 0..STRIPES {
                let count = rng.between(1, MOST.min(stripe));
                let first = nth * stripe + rng.below(stripe - count + 1);
                let range = first as usize * BLOCK..(first + count) as usize * BLOCK;
                let framing = Framing::random(&mut rng);
                let read = rng.chance(1, 2);
                let cdb =
                    if read { cdb::read16(first, count as u32) } else { cdb::write16(first, count as u32, false) };
                if !read {
                    rng.fill(&mut image[range.clone()]);
                }
                let (out, in_len) = if read { (&[][..], range.len()) } else { (&image[range.clone()], 0) };
                let command = Command { framing, ..Command::new(self.lun, &cdb, out, in_len) };
                let ticket = self.front.submit(FIRST_REQUEST_QUEUE, &command).context("no room")?;
                open.push((ticket, read, range));
            }
            while !open.is_empty() {
                let (ticket, response) = self.front.wait(FIRST_REQUEST_QUEUE, PATIENCE)?;
                let at = open.iter().position(|(of, ..)| *of == ticket).context("an answer to nothing")?;
                let (_, read, range) = open.swap_remove(at);
                ensure!(response.good() && response.residual == 0, "round {round}, {range:?}: {response:02x?}");
                ensure!(!read || response.data == image[range.clone()], "round {round}: {range:?} reads otherwise");
            }
        }
        for (at, piece) in image.chunks(256 * BLOCK).enumerate() {
            let cdb = cdb::read16(at as u64 * 256, (piece.len() / BLOCK) as u32);
            ensure!(self.device()?.cdb(&cdb, &[], piece.len())?.data == piece, "the device holds something else");
            let through = self.front.good(self.lun, &cdb, &[], piece.len())?;
            ensure!(through.data == piece, "Pollux reads something else");
        }
        println!("{rounds} rounds, {blocks} blocks are the same");
        Ok(())
    }

    fn refused(&mut self) -> Result<()> {
        self.settle()?;
        let keys = [0; 24];
        for (what, cdb, out, in_len) in [
            ("EXTENDED COPY", &[0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 24, 0, 0][..], &keys[..], 0),
            ("POPULATE TOKEN", &[0x83, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 24, 0, 0], &keys, 0),
            ("PERSISTENT RESERVE IN", &[0x5E, 0, 0, 0, 0, 0, 0, 0, 252, 0], &[], 252),
            ("PERSISTENT RESERVE OUT", &[0x5F, 0, 0, 0, 0, 0, 0, 0, 24, 0], &keys, 0),
            ("RESERVE (6)", &[0x16, 0, 0, 0, 0, 0], &[], 0),
            ("FORMAT UNIT", &[0x04, 0, 0, 0, 0, 0], &[], 0),
            ("SANITIZE", &[0x48, 2, 0, 0, 0, 0, 0, 0, 0, 0], &[], 0),
            ("WRITE BUFFER", &[0x3B, 5, 0, 0, 0, 0, 0, 0, 24, 0], &keys, 0),
            ("ATA PASS-THROUGH", &[0x85, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 0),
            ("a vendor's command", &[0xC7, 0, 0, 0, 0, 0], &[], 0),
        ] {
            let response = self.front.cdb(self.lun, cdb, out, in_len)?;
            ensure!(response.sense_key() == Some((5, 0x20, 0)), "{what}: {response:02x?}");
        }
        let half = [0, 0, 0, 8, 0, 0, 0x40, 0, 0, 0, 2, 0];
        let disk = self.front.good(self.lun, &cdb::inquiry(None, 36), &[], 36)?.data[0] == 0;
        for (what, cdb, out, asc) in [
            ("a self-test in the foreground", &[0x1D, 0xD0, 0, 0, 0, 0][..], &[][..], 0x24),
            ("LOG SENSE with SP", &[0x4D, 1, 0x40, 0, 0, 0, 0, 0, 0, 0], &[], 0x24),
            ("READ BUFFER, a vendor's mode", &[0x3C, 1, 0, 0, 0, 0, 0, 0, 0, 0], &[], 0x20),
            ("MODE SELECT with a block descriptor", &[0x15, 0x10, 0, 0, 12, 0], &half, 0x26),
        ] {
            if asc == 0x26 && !disk {
                continue;
            }
            let response = self.front.cdb(self.lun, cdb, out, 0)?;
            ensure!(response.sense_key() == Some((5, asc, 0)), "{what}: {response:02x?}");
        }
        let luns = self.front.good(self.lun, &cdb::report_luns(256), &[], 256)?;
        ensure!(luns.data[..4] == [0, 0, 0, 8], "REPORT LUNS shows more than the controller has: {luns:02x?}");
        println!("refused");
        Ok(())
    }

    fn manage(&mut self) -> Result<()> {
        let read = cdb::read10(0, 8);
        let command = Command::new(self.lun, &read, &[], 8 * BLOCK);
        let (aborted, other) = (self.start(&command)?, self.start(&command)?);
        // The answer to an abort means that the command's buffer is the guest's again.
        let answer = self.front.tmf(Tmf::AbortTask, self.lun.bytes(), aborted)?;
        ensure!(answer == 0, "ABORT TASK: {answer}");
        let mut ends = vec![self.now()?];
        ends.push(self.front.wait(FIRST_REQUEST_QUEUE, PATIENCE)?);
        ends.sort_by_key(|(ticket, _)| *ticket != aborted);
        ensure!((ends[0].0, ends[0].1.response) == (aborted, 2), "{:02x?}", ends[0]);
        ensure!((ends[1].0, ends[1].1.response, ends[1].1.status) == (other, 0, 0), "{:02x?}", ends[1]);
        let reset: Vec<_> = (0..3).map(|_| self.start(&command)).collect::<Result<_>>()?;
        let answer = self.front.tmf(Tmf::LunReset, self.lun.bytes(), 0)?;
        ensure!(answer == 0, "LOGICAL UNIT RESET: {answer}");
        for _ in &reset {
            let (_, response) = self.now()?;
            ensure!(response.response == 4, "{response:02x?}");
        }
        let told = self.front.cdb(self.lun, &cdb::TEST_UNIT_READY, &[], 0)?;
        ensure!(told.sense_key().is_some_and(|sense| (sense.0, sense.1) == (6, 0x29)), "{told:02x?}");
        self.settle()?;
        println!("aborted and reset");
        Ok(())
    }

    fn start(&mut self, command: &Command<'_>) -> Result<u64> {
        self.front.submit(FIRST_REQUEST_QUEUE, command).context("no room")
    }

    /// An answer that is there already.
    fn now(&mut self) -> Result<(u64, Response)> {
        self.front.poll(FIRST_REQUEST_QUEUE)?.context("the function was answered before the command")
    }

    fn gone(&mut self) -> Result<()> {
        for _ in 0..50 {
            let response = self.front.cdb(self.lun, &cdb::TEST_UNIT_READY, &[], 0)?;
            if response.response == 3 {
                println!("gone");
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        bail!("the device is still there")
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut client = Client::new(&args)?;
    match args.task {
        Task::Compare => client.compare(),
        Task::Load { rounds, seed } => client.load(rounds, seed),
        Task::Refused => client.refused(),
        Task::Manage => {
            client.settle()?;
            client.manage()
        }
        Task::Die => {
            client.settle()?;
            let read = cdb::read10(0, 64);
            for _ in 0..8 {
                client.start(&Command::new(client.lun, &read, &[], 64 * BLOCK))?;
            }
            println!("in flight");
            std::process::exit(0)
        }
        Task::Gone => client.gone(),
    }
}
