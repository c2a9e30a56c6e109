"""Where each public case of otp-cases.md, and each rule that implementers usually miss, has its test.

``file::test``, without ``tests/test_`` and ``.py``, and without the ``test_`` of the function. Those in ``tree``,
``dynamic``, ``child_spec``, ``restart`` and ``signals`` run on the pure core, with times given; all others with real
processes, and with the invariants of otp.md 19 asserted after them where they have a ``yard``.
"""

from __future__ import annotations

PUBLIC_HALF = (
    "A02 A03 A05 A06 A07 A09 A11 B01 B02 B04 B05 B07 B09 C01 C02 C03 D01 D02 D06 D08 D10 D12 D13 D15 E01 E02 E06"
    " F01 F02 F04 F08 G01 G02 G03 G04 G07 G09 H01 H04 H06 H07 H12 I01 I02 I07 I08 J01 J04 J06 J07"
)
"""The ids of otp-cases.md."""

CASES: dict[str, str] = {
    "A02": "processes::a02_a03_ignored_children tree::a02_a_child_that_ignores_is_kept_without_a_pid",
    "A03": "processes::a02_a03_ignored_children tree::a03_a_temporary_child_that_ignores_is_dropped",
    "A05": "module_supervisors::a05_a_bad_return_is_named_with_class_and_value"
    " otp_cases::a05_a_failed_start_leaves_no_exit_behind",
    "A06": "otp_cases::a06_g03_a_start_error_carries_the_spec_only_under_a_static_supervisor"
    " supervisor_api::a06_start_child_of_what_cannot_start",
    "A07": "supervisor_api::a07_get_childspec_shows_every_default child_spec::a07_a_bare_spec_has_every_default",
    "A09": "child_spec::a09_each_field_is_refused_by_its_tag child_spec::a09_missing_fields_and_wrong_kinds"
    " supervisor_api::a09_a_wrong_specification_is_named_as_otp_does module_supervisors::a09_check_childspecs"
    " module_supervisors::a09_check_childspecs_of_what_is_no_list_and_with_auto_shutdown"
    " tree::a09_simple_one_for_one_needs_exactly_one_spec",
    "A11": "child_spec::a11_g01_each_flag_is_refused_by_its_tag child_spec::a11_flags_of_a_wrong_kind"
    " supervisor_api::a11_wrong_flags_and_what_is_no_list module_supervisors::a11_bad_flags_of_a_class",
    "B01": "supervisor_api::b01_b02_the_life_of_a_child",
    "B02": "supervisor_api::b01_b02_the_life_of_a_child"
    " supervisor_api::b02_restart_child_of_one_that_cannot_start_keeps_its_spec",
    "B04": "supervisor_api::b04_a_supervisor_that_is_not_there",
    "B05": "supervisor_api::b05_simple_one_for_one_is_administered_by_pid",
    "B07": "processes::b07_info_is_passed_on_and_not_kept",
    "B09": "otp_cases::b09_what_start_child_of_the_same_id_answers tree::b09_what_is_left_of_a_child_by_type_and_end",
    "C01": "forest::c01_a_permanent_child_is_restarted_whatever_it_ends_with",
    "C02": "forest::c02_a_transient_child_is_restarted_only_after_an_abnormal_end",
    "C03": "forest::c03_a_temporary_child_is_gone_with_its_spec otp_cases::c02_c03_a_shutdown_is_a_clean_end",
    "D01": "otp_cases::d01_one_restart_in_one_second_again_and_again tree::d01_crashes_that_are_far_apart_are_survived",
    "D02": "forest::d02_one_for_one otp_cases::d02_d10_who_gives_up_exits_shutdown",
    "D06": "forest::d06_one_for_all",
    "D08": "forest::d08_rest_for_one",
    "D10": "forest::d10_simple_one_for_one otp_cases::d02_d10_who_gives_up_exits_shutdown",
    "D12": "forest::d12_order_of_restarts_and_of_the_end",
    "D13": "forest::d13_a_tree_of_supervisors",
    "D15": "forest::d15_a_loop_of_failing_restarts_can_be_looked_at_and_ended"
    " otp_cases::d15_a_cancelled_loop_is_started_again_by_hand",
    "E01": "otp_cases::e01_stop_kills_who_does_not_end_in_time forest::e01_who_does_not_end_in_time_is_killed",
    "E02": "otp_cases::e02_stop_with_brutal_kill forest::e02_brutal_kill_and_a_shutdown_of_zero",
    "E06": "otp_cases::e06_instances_of_simple_one_for_one_end_at_once dynamic::e06_all_share_one_deadline"
    " forest::e06_children_of_a_dynamic_supervisor_end_at_once_and_not_one_after_another",
    "F01": "otp_cases::f01_a_child_that_is_not_significant_never_ends_its_supervisor"
    " tree::f01_a_child_that_is_not_significant_never_ends_its_supervisor",
    "F02": "otp_cases::f02_all_of_a_significant_temporary_childs_siblings_end"
    " forest::f02_a_significant_temporary_child_ends_the_supervisor",
    "F04": "forest::f04_a_significant_transient_child_that_crashes_is_restarted",
    "F08": "otp_cases::f08_combinations_that_make_no_sense tree::a11_f08_bad_flags_are_supervisor_data"
    " child_spec::f08_simple_one_for_one_has_no_auto_shutdown",
    "G01": "otp_cases::g01_defaults_of_a_dynamic_supervisor child_spec::g01_dynamic_flags"
    " module_supervisors::g01_bad_returns_of_a_dynamic_class module_supervisors::g01_bad_flags_of_a_dynamic_class",
    "G02": "supervisor_api::g02_extra_arguments_come_first_on_restarts_too"
    " dynamic::g02_extra_arguments_come_before_the_childs_own_on_restarts_too",
    "G03": "otp_cases::g03_what_a_start_may_come_to_under_a_dynamic_supervisor"
    " otp_cases::a06_g03_a_start_error_carries_the_spec_only_under_a_static_supervisor",
    "G04": "module_supervisors::g04_a_dynamic_supervisor_need_not_exist_for_a_wrong_spec_to_be_named"
    " supervisor_api::g04_wrong_specifications_and_max_children",
    "G07": "forest::g07_restarts_that_always_fail_end_the_supervisor"
    " forest::g07_one_failed_attempt_within_the_limit_is_survived"
    " dynamic::g07_one_failed_attempt_and_a_success_inside_the_limit",
    "G09": "otp_cases::g09_reasons_of_children_that_are_terminated forest::g09_terminate_child_of_a_dynamic_supervisor",
    "H01": "processes::h01_a_server_of_its_own"
    " otp_cases::h01_a_server_whose_init_takes_too_long_leaves_no_process_and_no_name",
    "H04": "processes::h04_stop",
    "H06": "processes::h06_why_a_call_fails otp_cases::h06_the_supervisor_of_a_call_may_be_gone"
    " process_faults::a_lost_supervisor_is_noconnection_once_for_each",
    "H07": "processes::h07_deferred_reply_timeout_and_bad_return",
    "H12": "processes::h12_hibernated_keeps_pid_and_name server_child::h12_a_queued_message_wakes_it_at_once"
    " otp_servers::hibernate_with_a_queued_message_wakes_at_once",
    "I01": "processes::i01_one_down_for_each_monitor",
    "I02": "processes::i02_demonitor otp_cases::i02_demonitor_of_another_processs_reference_is_an_error",
    "I07": "processes::i07_tables_are_empty_after_everything_has_ended"
    " otp_cases::i07_a_watcher_that_dies_leaves_no_monitor"
    " signals::the_tables_of_both_sides_are_empty_after_every_way_a_monitor_ends",
    "I08": "processes::i08_only_normal_is_harmless_over_a_link processes::exit_signals",
    "J01": "registries::j01_a_unique_key_has_one_holder_whoever_asks",
    "J04": "registries::j04_dispatch_calls_in_the_callers_thread_and_never_for_no_entries",
    "J06": "registries::j06_a_server_is_started_called_and_found_through_via"
    " registries::via_on_duplicate_keys_or_an_unknown_registry_raises",
    "J07": "registries::j07_no_key_of_a_killed_process_is_left_when_its_down_is_seen",
}

RULES: dict[str, str] = {
    "intensity N allows N restarts, the next one stops the supervisor, 0 allows none":
        "otp_rules::intensity_n_allows_n_restarts_and_the_next_stops_the_supervisor",
    "the window counts whole seconds, inclusive":
        "restart::the_window_includes_its_bound_in_whole_seconds"
        " restart::the_three_examples_of_intensity_1_in_1_second otp_rules::a_window_of_whole_seconds_forgets",
    "a group restart counts once; initial starts, manual calls and clean exits never":
        "otp_rules::a_group_restart_counts_once_and_initial_starts_manual_calls_and_clean_exits_never"
        " otp_rules::a_failing_initial_start_is_no_restart",
    "each failed attempt counts again": "otp_rules::each_failed_attempt_counts_again",
    "a failed restart goes through the supervisor's own queue, and terminate_child cancels it":
        "otp_rules::a_failed_restart_goes_through_the_supervisors_own_queue"
        " otp_rules::a_retry_cancelled_by_terminate_child_leaves_the_later_ones_down",
    "while restarting: already_present, restarting, restarting":
        "otp_rules::while_restarting_what_is_asked_is_answered_as_otp_does",
    "a later child fails: one_for_all redoes everything":
        "otp_rules::when_a_later_child_fails_one_for_all_redoes_everything",
    "a later child fails: rest_for_one resumes there":
        "otp_rules::when_a_later_child_fails_rest_for_one_resumes_there",
    "a group restart revives every non-temporary child in its range, also those stopped by hand":
        "otp_rules::a_group_restart_revives_every_child_in_its_range_that_is_not_temporary",
    "a supervisor that gives up exits shutdown, which is clean":
        "otp_rules::a_supervisor_that_gives_up_exits_shutdown_which_is_clean",
    "on links only normal is harmless": "processes::i08_only_normal_is_harmless_over_a_link",
    "an explicit kill reads killed": "processes::exit_signals otp_servers::a_kill_goes_along_a_line_of_links_as_killed",
    "static supervisors stop one by one in reverse": "otp_rules::static_supervisors_stop_one_by_one_in_reverse",
    "dynamic ones stop in parallel": "otp_rules::dynamic_supervisors_stop_in_parallel",
    "termination waits for the process and never for a pipe":
        "otp_rules::termination_never_waits_for_a_pipe"
        " otp_rules::a_grandchild_with_the_output_open_does_not_delay_the_end",
    "ignore and start errors differ by kind of supervisor":
        "otp_rules::ignore_differs_by_kind_of_supervisor"
        " otp_cases::a06_g03_a_start_error_carries_the_spec_only_under_a_static_supervisor",
    "terminate_child of a dead pid: ok under simple_one_for_one, not_found under a dynamic one":
        "otp_rules::terminate_child_of_a_dead_pid_is_ok_under_simple_one_for_one_and_not_found_under_dynamic",
    "max_children counts restarting children": "otp_rules::max_children_counts_those_that_restart",
    "auto-shutdown needs a significant child that ends by itself":
        "otp_rules::auto_shutdown_needs_a_significant_child_that_ends_by_itself",
    "a failed start returns only when the process is gone and its name free":
        "otp_rules::a_failed_start_returns_when_the_process_is_gone_and_its_name_free",
    "names are free before any Down is visible": "processes::names_are_free_before_a_down_is_seen",
    "who has seen a Down finds that the supervisor knows":
        "otp_rules::who_has_seen_a_down_finds_the_supervisor_informed",
    "a call to a server that exits normal without replying fails":
        "processes::a_server_that_ends_without_a_reply_fails_the_call"
        " otp_servers::every_waiting_call_fails_with_the_reason",
    "with stop-and-reply the reply comes first": "processes::with_stop_and_reply_the_reply_comes_first",
    "a continue runs before any queued message": "otp_rules::with_a_full_queue_a_continue_comes_first",
    "a dead incarnation answers noproc": "process_faults::a_dead_incarnation_answers_noproc",
    "lost connection is noconnection, once per monitor":
        "process_faults::a_lost_supervisor_is_noconnection_once_for_each",
    "pipe EOF is a hint, only the pidfd decides":
        "otp_rules::end_of_file_is_a_hint_and_who_lives_is_supervised_on"
        " otp_rules::calls_to_a_server_that_cannot_answer_any_more_fail",
    "exit status 256": "otp_rules::exit_status_256_of_a_function_is_no_clean_end",
    "exceptions in threads": "otp_rules::an_exception_in_a_thread_ends_a_function_and_a_server",
    "booleans as numbers": "otp_rules::booleans_are_no_numbers",
    "1,000 rounds of start, name, kill, monitor, re-register": "process_faults::a_thousand_rounds_leave_nothing",
}  # fmt: skip
