//! Goes through a run and judges what a power cut could leave, around every flush
//! and every durable write.

use std::collections::HashSet;

use super::medium::{Contents, Image, Loss, Medium, Wrong};
use super::plan::{ORIGIN, ORIGIN_AT, Plan, Store};
use super::production::Production;
use super::random::Random;
use super::record::Recording;
use super::store::{Copies, Found, read, room};
use super::timeline::{Event, IoKind, Mark, Timeline};
use super::view::View;

/// The pilot's guests, by the stamps they write.
const ON_ORIGIN: u8 = 1;
const ON_S1: u8 = 2;
const ON_S3: u8 = 3;

#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub images: usize,
    /// Of those: in the middle of the merge.
    pub merging: usize,
    /// Of those: `s3` was invalid.
    pub invalid: usize,
    /// Most sectors in doubt at once.
    pub doubt: usize,
    /// Sectors of `s2` that the cut alone decided.
    pub cut: usize,
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} images judged, {} of them in the middle of the merge, {} with s3 invalid; \
             at most {} sectors in doubt at once; {} sectors of s2 decided by the cut",
            self.images, self.merging, self.invalid, self.doubt, self.cut
        )
    }
}

/// What the volume is at some instant.
struct Volume<'a> {
    plan: &'a Plan,
    cut: &'a [u64],
    ready: bool,
    /// Until the handover.
    origin: Option<View>,
    /// Of `s1`, and after the handover of the merge view.
    s1: View,
    s2: Option<View>,
    s3: View,
    /// By sector, while `s2` is taken: what it may show.
    taking: Option<Vec<Vec<u64>>>,
    handed: bool,
    merged: bool,
    /// Chunks that `s3` needed copies of.
    touched: HashSet<u64>,
    /// `s3` is durably invalid.
    invalid: bool,
}

/// # Errors
/// What a power cut could have left that should not be, and when.
pub fn judge(
    recording: &Recording,
    timeline: &Timeline,
    contents: &Contents,
    wrong: Wrong,
    production: &mut Production,
) -> Result<Counts, String> {
    let plan = &recording.plan;
    let mut medium = Medium::new(contents, timeline, plan);
    let mut volume = Volume::new(plan, &recording.cut);
    let mut counts = Counts::default();
    let mut random = Random::new(1);
    let hasty = (wrong == Wrong::Hasty).then(|| timeline.hasty());
    let events = hasty.as_ref().unwrap_or(&timeline.events);
    for (at, event) in events.iter().enumerate() {
        let told = |error: String| format!("at event {at}: {error}");
        match event {
            Event::Mark(mark) => {
                counts.cut += volume.mark(mark).map_err(told)?;
                if volume.ready {
                    medium.wrong = wrong;
                }
            }
            Event::Begun(io) => medium.begin(*io),
            Event::Ended(io) if timeline.ios[*io].kind == IoKind::Write => medium.end(*io),
            Event::Ended(io) => {
                counts.doubt = counts.doubt.max(medium.in_doubt());
                let others = [Loss::Sectors, Loss::Writes, Loss::OneLost, Loss::OneKept];
                let other = others[at % others.len()];
                for loss in [Loss::Nothing, Loss::AllButOrigin, Loss::Origin, other] {
                    let image = medium.image(loss, &mut random);
                    let judged = volume.judge(&image, &mut counts, production);
                    judged.map_err(|e| told(format!("loss of {loss:?}: {e}")))?;
                }
                medium.end(*io);
                let image = medium.image(Loss::All, &mut random);
                let judged = volume.judge(&image, &mut counts, production);
                let invalid = judged.map_err(|e| told(format!("loss of All: {e}")))?;
                if volume.invalid && !invalid {
                    return Err(told("s3 was invalid and is valid again".into()));
                }
                volume.invalid = invalid;
            }
        }
    }
    // After a clean stop nothing that was acknowledged can be lost.
    let image = medium.image(Loss::All, &mut random);
    let judged = volume.judge(&image, &mut counts, production);
    judged.map_err(|e| format!("after the stop: {e}"))?;
    if !(volume.merged && volume.invalid) {
        return Err("the run ended without a merge or with room in s3".into());
    }
    Ok(counts)
}

impl<'a> Volume<'a> {
    fn new(plan: &'a Plan, cut: &'a [u64]) -> Self {
        let first: Vec<u64> = (0..ORIGIN).collect();
        Self {
            plan,
            cut,
            ready: false,
            origin: Some(View::new("origin", first.clone())),
            s1: View::new("s1", first.clone()),
            s2: None,
            s3: View::new("s3", first),
            taking: None,
            handed: false,
            merged: false,
            touched: HashSet::new(),
            invalid: false,
        }
    }

    /// The view that a guest is on.
    fn view(&mut self, writer: u8) -> Option<&mut View> {
        match writer {
            ON_ORIGIN if self.handed => Some(&mut self.s1),
            ON_ORIGIN => self.origin.as_mut(),
            ON_S1 => Some(&mut self.s1),
            ON_S3 => Some(&mut self.s3),
            _ => self.s2.as_mut(),
        }
    }

    /// Returns how many sectors of a cut could have been otherwise.
    fn mark(&mut self, mark: &Mark) -> Result<usize, String> {
        match mark {
            Mark::Write(by, number, sector, count) => {
                if *by == ON_ORIGIN
                    && let Some(taking) = &mut self.taking
                {
                    let stamps = super::stamps::stamp(*by, *number)..;
                    for (allowed, stamp) in taking[*sector as usize..]
                        .iter_mut()
                        .zip(stamps)
                        .take(*count as usize)
                    {
                        allowed.push(stamp);
                    }
                }
                if [ON_ORIGIN, ON_S3].contains(by) {
                    let chunk = self.plan.stores[2].chunk;
                    self.touched
                        .extend(sector / chunk..=(sector + count - 1) / chunk);
                }
                self.known(*by)?.write(*by, *number, *sector, *count);
            }
            Mark::Acked(by, number) => self.known(*by)?.ack(*by, *number),
            Mark::Flush(by, number) => self.known(*by)?.flush(*by, *number),
            Mark::Flushed(by, number) => self.known(*by)?.flushed(*by, *number),
            Mark::Step(step) => return self.step(step),
        }
        Ok(0)
    }

    fn known(&mut self, writer: u8) -> Result<&mut View, String> {
        self.view(writer)
            .ok_or_else(|| format!("writer {writer} has no view"))
    }

    fn step(&mut self, step: &str) -> Result<usize, String> {
        match step {
            "ready" => self.ready = true,
            "take" => self.taking = self.origin.as_ref().map(View::cut),
            "taken" => {
                let allowed = self.taking.take().ok_or("taken and not asked for")?;
                for (sector, (allowed, found)) in allowed.iter().zip(self.cut).enumerate() {
                    if !allowed.contains(found) {
                        let found = super::stamps::Found(Some(*found));
                        return Err(format!("s2 was taken with {found} in sector {sector}"));
                    }
                }
                self.s2 = Some(View::new("s2", self.cut.to_vec()));
                return Ok(allowed.iter().filter(|allowed| allowed.len() > 1).count());
            }
            // From here on the origin is a mixture, which shows s1 with its store.
            "hand" => {
                self.origin = None;
                self.handed = true;
            }
            "handed" => {}
            "merged" => self.merged = true,
            "stopped" => {
                self.s1.stopped();
                if let Some(s2) = &mut self.s2 {
                    s2.stopped();
                }
            }
            other => return Err(format!("no step: {other}")),
        }
        Ok(0)
    }

    /// Whether `s3` is invalid in this image.
    fn judge(
        &self,
        image: &Image,
        counts: &mut Counts,
        production: &mut Production,
    ) -> Result<bool, String> {
        if !self.ready {
            return Ok(false);
        }
        let [s1, s2, s3] = self.plan.stores;
        if let Some(origin) = &self.origin {
            origin.judge(|sector| image.stamp(ORIGIN_AT + sector))?;
        }
        let copies = self.shows(image, s1, &self.s1)?;
        if self.merged && copies.of.iter().any(|copy| *copy != 0) {
            return Err("s1 is merged and not empty".into());
        }
        production.same(image, s1, Some(&copies))?;
        let merging = self.handed && !self.merged;
        production.sample(image, &copies, merging)?;
        if let Some(view) = &self.s2 {
            let copies = self.shows(image, s2, view)?;
            production.same(image, s2, Some(&copies))?;
            production.sample(image, &copies, false)?;
        }
        counts.images += 1;
        counts.merging += usize::from(merging);
        let Found::Valid(copies) = read(image, s3)? else {
            production.same(image, s3, None)?;
            counts.invalid += 1;
            let (needed, room) = (self.touched.len() as u64, room(s3));
            if needed <= room {
                return Err(format!("s3 is invalid with {needed} of {room} copies"));
            }
            return Ok(true);
        };
        self.s3.judge(|sector| image.stamp(copies.place(sector)))?;
        production.same(image, s3, Some(&copies))?;
        Ok(false)
    }

    /// A store that must be valid, and show what its view must.
    fn shows(&self, image: &Image, store: Store, view: &View) -> Result<Copies, String> {
        match read(image, store)? {
            Found::Invalid => Err(format!("{} is invalid", store.name)),
            Found::Valid(copies) => {
                view.judge(|sector| image.stamp(copies.place(sector)))?;
                Ok(copies)
            }
        }
    }
}
