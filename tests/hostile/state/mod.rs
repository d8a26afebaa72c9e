//! What a front end may negotiate, and when it may reset or leave.

mod disconnects;
mod features;
mod resets;
mod steps;
