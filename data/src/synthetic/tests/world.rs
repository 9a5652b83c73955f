//! Tests of the questions about changes.

use crate::synthetic::design::{DESIGN, FRAMES};
use crate::synthetic::names::Motion;
use crate::synthetic::raster::FRAME_BYTES;
use crate::synthetic::world::question;

#[test]
fn a_question_has_four_different_motions_and_one_of_them_lies_between_its_pictures() {
    let mut places = [0; 4];
    for index in 0..DESIGN.world_predictions {
        let question = question(0, index);
        assert_eq!(question.pictures.len(), 2 * FRAME_BYTES);
        assert_eq!(question.clips.len(), 4 * FRAMES * FRAME_BYTES);
        let right: Vec<usize> =
            (0..4).filter(|&place| question.motions[place] == question.motion).collect();
        assert_eq!(right.len(), 1, "{:?} of {:?}", question.motion, question.motions);
        places[right[0]] += 1;
        let mut distinct: Vec<&str> = question.motions.iter().map(|motion| motion.name()).collect();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), 4);
        // No clip holds the pictures themselves, so equal pixels say nothing.
        let first = &question.pictures[..FRAME_BYTES];
        assert!(question.clips.chunks(FRAME_BYTES).all(|frame| frame != first));
    }
    // 50 ± 4 standard deviations of √(200 · ¼ · ¾).
    assert!(places.iter().all(|count| (26..=74).contains(count)), "{places:?}");
}

/// A figure that grew covers more of the last picture than of the first.
#[test]
fn the_pictures_of_a_figure_that_grows_differ_from_those_of_one_that_shrinks() {
    let mut seen = [0; 2];
    for index in 0..DESIGN.world_predictions {
        let question = question(0, index);
        let (first, last) = question.pictures.split_at(FRAME_BYTES);
        // The background is the darkest of a frame, up to its noise.
        let lit = |frame: &[u8]| {
            frame.chunks(3).filter(|pixel| pixel.iter().any(|&value| value > 80)).count()
        };
        match question.motion {
            Motion::Growing => assert!(lit(last) > lit(first), "{index}"),
            Motion::Shrinking => assert!(lit(last) < lit(first), "{index}"),
            _ => continue,
        }
        seen[usize::from(question.motion == Motion::Growing)] += 1;
    }
    assert!(seen.iter().all(|&count| count > 10), "{seen:?}");
}
