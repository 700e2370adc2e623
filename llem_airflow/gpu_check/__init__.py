"""What a board's power meter is: ``llem-airflow gpu-check`` measures it and keeps it as a profile.

The readings are taken by ``llem_airflow.measurement.board``, in a process of its own.
"""
