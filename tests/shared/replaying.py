"""A run of a scenario again, from what a token carries."""

from septum.scenarios.outcome import ScenarioOutcome
from septum.scenarios.run import ScenarioRecipe, run_scenario, scenario_of_recipe
from septum.sim import Schedule


def replay_scenario(recipe: ScenarioRecipe, schedule: Schedule) -> ScenarioOutcome:
    """Run again what a token stands for. Raises InputError."""
    # The token was made from one of the literals.
    return run_scenario(scenario_of_recipe(recipe), recipe.design, schedule, recipe.check)  # type: ignore[arg-type]
