//! Whether things that need each other can be put in order.

use super::proto::{GraphProto, NodeProto};
use std::collections::HashMap;

/// For every node, the nodes of the same graph whose outputs it needs, also within its bodies.
pub(super) fn needs_of_nodes(nodes: &[NodeProto]) -> Vec<Vec<usize>> {
    let outputs = |(index, node): (usize, &'_ NodeProto)| node.output.iter().map(move |name| (name.clone(), index)).collect::<Vec<_>>();
    let producers: HashMap<String, usize> = nodes.iter().enumerate().flat_map(outputs).filter(|(name, _)| !name.is_empty()).collect();
    let needs = |node| {
        let mut used = Vec::new();
        collect_used(node, &mut used);
        used.into_iter().filter_map(|name| producers.get(name).copied()).collect()
    };
    nodes.iter().map(needs).collect()
}

fn collect_used<'m>(node: &'m NodeProto, used: &mut Vec<&'m str>) {
    used.extend(node.input.iter().map(String::as_str));
    let of_body = |body: &'m GraphProto| {
        body.node.iter().for_each(|node| collect_used(node, used));
        used.extend(body.output.iter().map(|output| output.name.as_str()));
    };
    node.bodies().for_each(of_body);
}

/// One member of a circle, if there is a circle: `needs[i]` are those that `i` needs.
pub(super) fn find_cycle(needs: &[Vec<usize>]) -> Option<usize> {
    let mut needed_by = vec![Vec::new(); needs.len()];
    for (index, needs) in needs.iter().enumerate() {
        needs.iter().for_each(|need| needed_by[*need].push(index));
    }
    let mut missing: Vec<usize> = needs.iter().map(Vec::len).collect();
    let mut ready: Vec<usize> = (0..needs.len()).filter(|index| missing[*index] == 0).collect();
    while let Some(done) = ready.pop() {
        for &index in &needed_by[done] {
            missing[index] -= 1;
            if missing[index] == 0 {
                ready.push(index);
            }
        }
    }
    // Whoever still misses something needs another one that does; who comes by twice is in a circle.
    let mut member = missing.iter().position(|missing| *missing > 0)?;
    let mut seen = vec![false; needs.len()];
    while !std::mem::replace(&mut seen[member], true) {
        member = *needs[member].iter().find(|need| missing[**need] > 0)?;
    }
    Some(member)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn circles_are_found() {
        type Case = (&'static [&'static [usize]], &'static [usize]);
        let cases: [Case; 6] = [
            (&[], &[]),
            (&[&[]], &[]),
            (&[&[0]], &[0]),
            (&[&[1], &[2], &[]], &[]),
            (&[&[1, 1], &[2], &[1], &[0]], &[1, 2]),
            (&[&[], &[0, 2], &[0, 3], &[0, 2], &[1]], &[2, 3]),
        ];
        for (needs, members) in cases {
            let needs: Vec<Vec<usize>> = needs.iter().map(|needs| needs.to_vec()).collect();
            let found = find_cycle(&needs);
            assert_eq!(found.is_some(), !members.is_empty(), "{needs:?}");
            assert!(found.is_none_or(|member| members.contains(&member)), "{needs:?}: {found:?}");
        }
    }
}
