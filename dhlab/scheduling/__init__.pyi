from .cohort import Cohort as Cohort
from .job import Job as Job
from .job import Jobs as Jobs
from .job import jobs as jobs
from .running import run_cohort as run_cohort
from .submitting import submit as submit
