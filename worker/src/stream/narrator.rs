//! Decides when a stream is described: once for each segment, as soon as its embeddings are steady.

use std::ops::Range;
use std::time::Instant;

use crate::evaluation::shifts::Shifts;

/// Divides the windows of a stream into segments, and says what is decoded of each.
///
/// A segment begins where the variance of the last embeddings exceeds the threshold. It is steady
/// when as many embeddings have come as the variance is taken of, without another change. Then
/// their mean is decoded: a user who watches wants the text soon, and the mean of the whole segment
/// is known only at its end. If the stream changes again before, the segment keeps its start,
/// because windows that overlap a change differ from those on both sides of it. A stream that keeps
/// changing for longer than that is told too: what came since the last change.
#[derive(Debug)]
pub(crate) struct Narrator {
    shifts: Shifts,
    /// Number of windows of a segment after which a further change no longer belongs to its start.
    patience: usize,
    /// Number of windows since the start of the open segment.
    waited: usize,
    /// Whether the next window begins a segment.
    begins: bool,
    /// Segment that has no text yet.
    open: Option<Begun>,
}

/// Start of a segment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Begun {
    /// Middle of the segment's first window in seconds. The first segment starts with the video.
    pub(crate) start_s: f64,
    /// When the last frame of this window arrived.
    pub(crate) arrived: Instant,
}

/// Segment whose text is due, and the embedding to decode.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Due {
    pub(crate) begun: Begun,
    pub(crate) embedding: Vec<f32>,
}

impl Narrator {
    /// A stream whose changes take at most `patience` windows, from the first that overlaps a
    /// change until the segment is steady.
    pub(crate) fn new(shifts: Shifts, patience: usize) -> Self {
        Self { shifts, patience, waited: 0, begins: true, open: None }
    }

    /// Takes the embedding (e) of the next window, in seconds, and when its last frame arrived.
    /// Returns the segment whose text is now due.
    pub(crate) fn push(
        &mut self,
        window: &Range<f64>,
        arrived: Instant,
        embedding: &[f32],
    ) -> Option<Due> {
        self.waited += 1;
        let ended = self.shifts.push(embedding);
        let has_shifted = ended.is_some();
        let restless = ended
            .filter(|_| self.waited >= self.patience)
            .and_then(|segment| Some(Due { begun: self.open.take()?, embedding: segment.mean }));
        if self.begins || (has_shifted && self.open.is_none()) {
            let middle_s = f64::midpoint(window.start, window.end);
            let start_s = if window.start > 0.0 { middle_s } else { 0.0 };
            self.open = Some(Begun { start_s, arrived });
            self.waited = 0;
            self.begins = false;
        }
        if restless.is_some() {
            return restless;
        }
        let begun = self.open?;
        let embedding = self.shifts.steady_mean()?;
        self.open = None;
        Some(Due { begun, embedding })
    }

    /// Variance that decided whether the last window begins a segment.
    pub(crate) fn variance(&self) -> f64 {
        self.shifts.variance()
    }

    /// Ends the segment, because the query changes or the stream ends. A segment that was not
    /// steady is due with the mean of what came since the last change.
    pub(crate) fn finish(&mut self) -> Option<Due> {
        self.begins = true;
        let rest = self.shifts.finish()?;
        Some(Due { begun: self.open.take()?, embedding: rest.mean })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::{Due, Narrator};
    use crate::evaluation::shifts::Shifts;

    const A: [f32; 3] = [1.0, 0.0, 0.0];
    const B: [f32; 3] = [0.0, 1.0, 0.0];
    /// A window that overlaps the change from A to B.
    const MIXED: [f32; 3] = [0.0, 0.0, 1.0];

    /// (Number of the window at which a text is due, start of the segment, embedding) of windows of
    /// 2 s each second.
    fn told(narrator: &mut Narrator, embeddings: &[[f32; 3]]) -> Vec<(usize, f64, Vec<f32>)> {
        let arrived = Instant::now();
        let mut all = Vec::new();
        for (number, embedding) in embeddings.iter().enumerate() {
            let start = number as f64;
            let due = narrator.push(&(start..start + 2.0), arrived, embedding);
            all.extend(due.map(|Due { begun, embedding }| (number, begun.start_s, embedding)));
        }
        all.extend(
            narrator
                .finish()
                .map(|Due { begun, embedding }| (embeddings.len(), begun.start_s, embedding)),
        );
        all
    }

    fn narrator() -> Narrator {
        Narrator::new(Shifts::new(2, 0.2, false), 4)
    }

    #[test]
    fn a_segment_is_told_once_when_it_is_steady() {
        let found = told(&mut narrator(), &[A, A, A, A, B, B, B]);
        assert_eq!(found, [(1, 0.0, A.to_vec()), (5, 5.0, B.to_vec())]);
        // The mean is that of as many embeddings as the variance is taken of.
        let near = [0.8, 0.6, 0.0];
        let found = told(&mut narrator(), &[A, near, B, B]);
        assert_eq!(found[0], (1, 0.0, vec![0.9, 0.3, 0.0]));
    }

    #[test]
    fn a_change_of_several_windows_begins_one_segment() {
        let found = told(&mut narrator(), &[A, A, MIXED, B, B]);
        assert_eq!(found, [(1, 0.0, A.to_vec()), (4, 3.0, B.to_vec())]);
    }

    #[test]
    fn a_stream_that_keeps_changing_is_told_at_a_bounded_distance() {
        let endless: Vec<_> = [A, B].into_iter().cycle().take(1000).collect();
        let found = told(&mut narrator(), &endless);
        let texts: Vec<_> = found.iter().map(|(number, start, _)| (*number, *start)).collect();
        // The window that ends a segment after four begins the next one.
        assert_eq!(texts[..3], [(4, 0.0), (8, 5.0), (12, 9.0)]);
        assert_eq!(texts.len(), 250, "249 while it changes, and one at the end");
        assert_eq!(found[0].2, B, "what came since the last change: the window before");
        // A change that takes fewer windows begins a single segment.
        let short = told(&mut narrator(), &[A, A, MIXED, A, MIXED, B, B, B]);
        assert_eq!(short, [(1, 0.0, A.to_vec()), (6, 3.0, B.to_vec())]);
    }

    #[test]
    fn a_segment_that_is_not_steady_at_the_end_is_told_too() {
        assert_eq!(told(&mut narrator(), &[A]), [(1, 0.0, A.to_vec())]);
        assert_eq!(told(&mut narrator(), &[A, A, B])[1], (3, 3.0, B.to_vec()));
        assert_eq!(told(&mut narrator(), &[A, A, A]).len(), 1, "a told segment is not repeated");
        assert_eq!(told(&mut narrator(), &[]), []);
    }

    #[test]
    fn after_the_query_has_changed_the_same_scene_is_told_again() {
        let mut narrator = narrator();
        let arrived = Instant::now();
        let push = |narrator: &mut Narrator, start: f64| {
            narrator.push(&(start..start + 2.0), arrived, &A).map(|due| due.begun.start_s)
        };
        let before = [0.0, 1.0, 2.0].map(|start| push(&mut narrator, start));
        assert_eq!(before, [None, Some(0.0), None]);
        assert_eq!(narrator.finish(), None);
        let after = [3.0, 4.0, 5.0].map(|start| push(&mut narrator, start));
        assert_eq!(after, [None, Some(4.0), None]);
    }
}
