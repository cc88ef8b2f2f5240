//! Running a plan: the backends and their reference.
