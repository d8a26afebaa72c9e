//! What may stand in a split ring.

mod available;
mod chains;
mod events;
mod in_flight;
mod indirect;
mod setup;

use crate::client::{Case, repeat, run};
use crate::world::World;

/// On all views.
fn run_all(cases: &[Case]) {
    let world = World::new();
    run(&world, cases);
    world.end();
}

#[test]
fn a_chain_of_any_shape_comes_back() {
    run_all(&chains::shapes());
}

#[test]
fn a_chain_with_any_address_comes_back_and_nothing_else_is_read_or_written() {
    run_all(&chains::addresses());
}

#[test]
fn a_chain_with_any_length_comes_back() {
    run_all(&chains::lengths());
}

#[test]
fn a_chain_with_any_directions_comes_back() {
    run_all(&chains::directions());
}

#[test]
fn an_indirect_table_of_any_kind_comes_back() {
    run_all(&indirect::tables());
}

#[test]
fn an_available_ring_of_any_kind_is_served_or_stopped_alone() {
    run_all(&available::entries());
}

#[test]
fn a_chain_that_is_rewritten_before_it_is_taken_is_carried_out_as_it_is_then() {
    run_all(&[in_flight::rewritten_before_it_is_taken()]);
}

/// A thousand times each.
#[test]
fn whatever_stands_in_a_ring_costs_nothing_that_lasts() {
    let world = World::new();
    let mut cases = chains::shapes();
    cases.extend(chains::addresses());
    cases.extend(chains::lengths());
    cases.extend(chains::directions());
    cases.extend(indirect::tables());
    cases.extend(available::entries());
    repeat(&world, &cases);
    world.end();
}
