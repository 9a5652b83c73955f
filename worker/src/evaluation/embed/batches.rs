//! Batches of samples and of the rows that ask about them.

use vljepa_data::LoadedSample;

use super::ROWS;

/// Samples that are encoded at once, and the rows that ask about them.
#[derive(Default)]
pub(super) struct SampleBatch<'a> {
    pub(super) samples: Vec<&'a LoadedSample>,
    /// Number of the sample in `samples`, and the query.
    pub(super) rows: Vec<(usize, &'a str)>,
}

/// Divides rows into batches of at most [`ROWS`] samples. Rows that follow each other and ask about
/// the same sample share it.
pub(super) fn batches<'a>(rows: &[(&'a LoadedSample, &'a str)]) -> Vec<SampleBatch<'a>> {
    let mut batches = Vec::new();
    let mut batch = SampleBatch::default();
    for &(sample, query) in rows {
        let is_last = |last: &&LoadedSample| std::ptr::eq(*last, sample);
        if !batch.samples.last().is_some_and(is_last) {
            if batch.samples.len() == ROWS {
                batches.push(std::mem::take(&mut batch));
            }
            batch.samples.push(sample);
        }
        batch.rows.push((batch.samples.len() - 1, query));
    }
    if !batch.rows.is_empty() {
        batches.push(batch);
    }
    batches
}

/// Number of the sample of each row.
pub(super) fn clips_of(rows: &[(usize, &str)]) -> Vec<usize> {
    rows.iter().map(|&(clip, _)| clip).collect()
}

#[cfg(test)]
mod tests {
    use vljepa_data::texts::Texts;

    use super::*;

    #[test]
    fn rows_share_a_sample_that_they_follow_each_other_about() {
        let sample = |key: usize| LoadedSample {
            key: key.to_string(),
            shard: String::new(),
            frames: Vec::new(),
            texts: Texts::default(),
        };
        // 398 pictures with 31 or 32 questions each, as GQA has.
        let pictures: Vec<LoadedSample> = (0..398).map(sample).collect();
        let count = |i: usize| 31 + i % 2;
        let asked: Vec<(&LoadedSample, &str)> =
            pictures.iter().enumerate().flat_map(|(i, p)| vec![(p, "what?"); count(i)]).collect();
        let batches = batches(&asked);
        assert_eq!(batches.iter().map(|batch| batch.samples.len()).sum::<usize>(), 398);
        assert!(batches.iter().all(|batch| batch.samples.len() <= ROWS));
        let again = batches
            .iter()
            .flat_map(|batch| batch.rows.iter().map(|&(clip, query)| (batch.samples[clip], query)));
        let same = |(a, b): ((&LoadedSample, &str), &(&LoadedSample, &str))| std::ptr::eq(a.0, b.0);
        assert!(again.zip(&asked).all(same));
        assert_eq!(batches.iter().map(|batch| batch.rows.len()).sum::<usize>(), asked.len());
        // A sample between two rows about another is a reason to encode that one again.
        let apart = [(&pictures[0], "a"), (&pictures[1], "a"), (&pictures[0], "b")];
        assert_eq!(super::batches(&apart)[0].samples.len(), 3);
        assert!(super::batches(&[]).is_empty());
    }
}
