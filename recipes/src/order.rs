//! Topological order.

/// A circle in what things need: each needs the next one, and the last one needs the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Circle(pub(crate) Vec<usize>);

/// Returns an order in which each thing comes after all that it needs. `needs[i]` lists what the
/// thing `i` needs. Things that do not need each other keep their order.
///
/// # Errors
///
/// Returns a circle if there is one.
pub(crate) fn order(needs: &[Vec<usize>]) -> Result<Vec<usize>, Circle> {
    let mut order = Vec::with_capacity(needs.len());
    let mut is_done = vec![false; needs.len()];
    while order.len() < needs.len() {
        let is_free =
            |index: &usize| !is_done[*index] && needs[*index].iter().all(|need| is_done[*need]);
        let Some(next) = (0..needs.len()).find(is_free) else {
            return Err(circle(needs, &is_done));
        };
        is_done[next] = true;
        order.push(next);
    }
    Ok(order)
}

/// A circle among the things that are not done, each of which needs another one of them. It begins
/// with its lowest index.
fn circle(needs: &[Vec<usize>], is_done: &[bool]) -> Circle {
    let mut path: Vec<usize> = Vec::new();
    let mut next = is_done.iter().position(|done| !done);
    while let Some(index) = next {
        if let Some(first) = path.iter().position(|known| *known == index) {
            let mut circle = path.split_off(first);
            let lowest = (0..circle.len()).min_by_key(|position| circle[*position]);
            circle.rotate_left(lowest.unwrap_or(0));
            return Circle(circle);
        }
        path.push(index);
        next = needs[index].iter().copied().find(|need| !is_done[*need]);
    }
    Circle(path)
}

#[cfg(test)]
mod tests {
    use super::{Circle, order};

    #[test]
    fn each_thing_comes_after_what_it_needs_and_the_others_keep_their_order() {
        assert_eq!(order(&[]), Ok(vec![]));
        assert_eq!(order(&[vec![], vec![], vec![]]), Ok(vec![0, 1, 2]));
        // 0 needs 2, and 3 needs 0 and 1.
        assert_eq!(order(&[vec![2], vec![], vec![], vec![0, 1]]), Ok(vec![1, 2, 0, 3]));
    }

    #[test]
    fn a_circle_is_found_without_the_things_that_lead_to_it() {
        assert_eq!(order(&[vec![0]]), Err(Circle(vec![0])));
        // 0 needs 2, which needs 3, which needs 1, which needs 2.
        let found = order(&[vec![2], vec![2], vec![3], vec![1], vec![]]);
        assert_eq!(found, Err(Circle(vec![1, 2, 3])));
    }
}
